"""KL-Cov (Cui et al. 2025, "The entropy mechanism of reinforcement learning for reasoning language models", arXiv 2505.22617).

    L = −A·r + coefficient·|log π − log π_old|        at the share·N tokens of the highest cov_t, as in `clip_cov`
      = −A·r                                          at all others

r = π / π_old, without a clip. The tokens that do most to lower the policy's entropy are held near the policy that sampled them.
Only positive cov_t count, so where all advantages are alike no token is penalised; else at least one is. On the first pass over
a batch log π = log π_old and the term has no gradient: it acts where a step has several updates. Worked: A = 2, r = 1.5,
coefficient 1 gives −3 + 0.4055, with gradient −3 + 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlcore.batch import GradedBatch
from rlcore.recipe.schema import NonNegativeFloat, PositiveShare
from rlcore.run.metrics import Max
from trainers.covariance import covariance, highest
from trainers.objective import Look, Loss, LossInputs, mean
from trainers.ratio import log_ratio


class KlCov:
    def __init__(self, *, share: PositiveShare = 2e-4, coefficient: NonNegativeFloat = 1.0) -> None:
        self._share, self._coefficient = share, coefficient

    def prepare(self, look: Look, batch: GradedBatch) -> Mapping[str, Tensor]:
        """`penalised` (n, T): 1 for the tokens of the highest covariance."""
        found = covariance(look())
        return {"penalised": highest(found.masked_fill(found <= 0, -torch.inf), self._share, batch.loss_mask)}

    def __call__(self, inputs: LossInputs) -> Loss:
        distance, penalised = log_ratio(inputs), inputs.prepared["penalised"]
        ratio = distance.exp()
        return Loss(
            -inputs.advantages * ratio + self._coefficient * distance.abs() * penalised,
            {
                "covariance/penalised": mean(penalised, inputs.loss_mask),
                "ratio/max": Max((ratio * inputs.loss_mask).max().item()),
            },
        )
