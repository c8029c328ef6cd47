"""How each token's advantage goes with its log-prob, and the choice of tokens by it: what `clip_cov` and `kl_cov` share."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.batch import GradedBatch
from rlcore.types import seed_from
from trainers.objective import LossInputs


def covariance(inputs: LossInputs) -> Tensor:
    """(n, T) cov_t of a whole mini-batch; −inf outside the loss."""
    inside = inputs.loss_mask.bool()
    advantages, logprobs = inputs.advantages[inside].double(), inputs.logprobs[inside].double()
    result = torch.full(inside.shape, -torch.inf, dtype=torch.float64)
    result[inside] = (advantages - advantages.mean()) * (logprobs - logprobs.mean())
    return result


def highest(values: Tensor, share: float, mask: Tensor) -> Tensor:
    """1 for a share of the tokens in the loss, those of the highest values, at least one; never where it is −inf. All (n, T).
    Equal values are taken or left together, so that the order of rows does not matter."""
    inside = values[mask.bool()]
    if not len(inside):
        return torch.zeros_like(mask)
    least = inside.topk(max(1, round(share * len(inside)))).values[-1]
    return ((values >= least) & (values > -torch.inf)).to(mask.dtype) * mask


def lots(batch: GradedBatch) -> Tensor:
    """(n, T) a random number in [0, 1) for each token, seeded by what its completion is: prompt, tokens and the versions of the
    weights that sampled them. So it is the same however the batch is cut, ordered and padded, and in each epoch of a step."""
    numbers = torch.zeros(batch.tokens.shape, dtype=torch.float64)
    for row, length in enumerate(batch.lengths.int().tolist()):
        seed = seed_from(batch.prompt_ids[row], batch.tokens[row, :length].tolist(), batch.versions[row, :length].tolist())
        numbers[row, :length] = torch.rand(length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return numbers
