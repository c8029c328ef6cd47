"""What is earned from a token on, summed backwards over the decisions of a completion.

The decisions k = 1 … K are its tokens in the loss. Tokens that the policy did not sample (a forced prefix, a tool's output) are
skipped: k + 1 is the next sampled token, and what a skipped token earns counts for the sampled one before it, so that a reward
at the end of a completion is not lost where the last token was forced. What comes before the first decision nobody earned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.batch import GradedBatch


def generalised_advantages(rewards: Tensor, values: Tensor, loss_mask: Tensor, gamma: float, lambda_: float | Tensor) -> Tensor:
    """(B, T) in double precision, 0 outside of `loss_mask`; all inputs (B, T), but for λ, of which there may be one a row:

    A_k = δ_k + γλ·A_{k+1},    δ_k = r_k + γ·V_{k+1} − V_k,    A_{K+1} = V_{K+1} = 0

    Values outside of `loss_mask` are not read.
    """
    rewards, values, sampled = rewards.double(), values.double(), loss_mask.bool()
    result = torch.zeros_like(rewards)
    earned = value = advantage = torch.zeros(len(rewards), dtype=torch.float64)
    for t in reversed(range(rewards.shape[1])):
        here = sampled[:, t]
        earned = earned + rewards[:, t]
        error = earned + gamma * value - values[:, t]
        advantage = torch.where(here, error + gamma * lambda_ * advantage, advantage)
        value = torch.where(here, values[:, t], value)
        earned = earned.masked_fill(here, 0)
        result[:, t] = advantage.masked_fill(~here, 0)
    return result


def rewards_to_go(batch: GradedBatch, gamma: float = 1.0) -> Tensor:
    """(B, T) G_k = Σ_{j ≥ k} γ^{j−k} r_j, in double precision, 0 outside of the loss: what `generalised_advantages` are where
    nothing is predicted and λ = 1."""
    return generalised_advantages(batch.per_token, torch.zeros(batch.tokens.shape), batch.loss_mask, gamma, 1.0)
