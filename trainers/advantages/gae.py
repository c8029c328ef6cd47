"""Generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438, eq. 16), the advantage of PPO.

    δ_t = r_t + γ·V_{t+1} − V_t
    A_t = δ_t + γλ·A_{t+1}        for the policy with λ_policy, then whitened over the batch
    R_t = A_t + V_t               for the critic, from the A_t made with λ_critic, not whitened

λ = 1 is the reward still to come less V, which no critic biases; λ = 0 is the TD error, of little variance and only as good as
the critic. Policy and critic have a λ each: VAPO's decoupled GAE (Yue et al. 2025, arXiv 2504.05118). Tokens outside the loss
are skipped (`trainers.returns`). Worked: r = 0, 0, 1 and V = 0.5, 0.6, 0.8 have δ = 0.1, 0.2, 0.2; with γ = 1, λ = 0.5 gives
A = 0.25, 0.3, 0.2 before whitening, and λ = 1 gives R = 1, 1, 1.

There is no group that a completion is compared with, so none is degenerate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.batch import Advantages, GradedBatch
from rlcore.recipe.schema import Share
from trainers.algorithm import needs
from trainers.returns import generalised_advantages
from trainers.whiten import whitened


@needs("values")
def gae(
    batch: GradedBatch,
    *,
    gamma: Share = 1.0,
    lambda_policy: Share | Tensor = 1.0,
    lambda_critic: Share = 1.0,
    whiten: bool = True,
) -> Advantages:
    """`lambda_policy`: one for all completions, or (B,)."""
    assert batch.values is not None  # what `needs` is for
    rewards, mask = batch.per_token, batch.loss_mask
    values = batch.values.masked_fill(mask == 0, 0)
    policy = generalised_advantages(rewards, values, mask, gamma, lambda_policy)
    returns = generalised_advantages(rewards, values, mask, gamma, lambda_critic) + values
    return Advantages(
        policy=whitened(policy, mask) if whiten else policy.float(),
        degenerate=torch.zeros(len(mask), dtype=torch.bool),
        returns=returns.float(),
    )
