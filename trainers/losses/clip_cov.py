"""Clip-Cov (Cui et al. 2025, "The entropy mechanism of reinforcement learning for reasoning language models", arXiv
2505.22617).

    cov_t = (A_t − mean A)·(log π_t − mean log π)        the means over the mini-batch's N tokens in the loss
    L     = 0          at share·N tokens drawn from those of  covariance_low < cov_t < covariance_high
          = L_PPO      at all others

Raising likely tokens of high advantage is what makes the policy's entropy fall, and a few tokens do most of it: these learn
nothing, and stay in the denominators. At least one is drawn, if there is any in the range; where all advantages are alike every
cov_t is 0 and none is. Worked: advantages 1, 1, −1, −1 and log-probs −1, −5, −3, −3 have the means 0 and −3, so cov = 2, −2,
0, 0: the first token is the one in (1, 5).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlcore.batch import GradedBatch
from rlcore.errors import UserError
from rlcore.recipe.schema import ClipLow, NonNegativeFloat, PositiveShare
from trainers.covariance import covariance, highest, lots
from trainers.losses.ppo_clip import ppo_clip
from trainers.objective import Look, Loss, LossInputs, mean


class ClipCov:
    """Raises UserError for an empty range."""

    def __init__(
        self,
        *,
        share: PositiveShare = 2e-4,
        covariance_low: float = 1.0,
        covariance_high: float = 5.0,
        clip_low: ClipLow = 0.2,
        clip_high: NonNegativeFloat = 0.2,
    ) -> None:
        if not covariance_low < covariance_high:
            raise UserError(
                f"clip_cov: covariance_low ({covariance_low:g}) must be below covariance_high ({covariance_high:g})"
            )
        self._share, self._low, self._high = share, covariance_low, covariance_high
        self._clip_low, self._clip_high = clip_low, clip_high

    def prepare(self, look: Look, batch: GradedBatch) -> Mapping[str, Tensor]:
        """`silenced` (n, T): 1 for the tokens drawn."""
        found = covariance(look())
        outside = (found <= self._low) | (found >= self._high)
        return {"silenced": highest(lots(batch).masked_fill(outside, -torch.inf), self._share, batch.loss_mask)}

    def __call__(self, inputs: LossInputs) -> Loss:
        ppo = ppo_clip(inputs, clip_low=self._clip_low, clip_high=self._clip_high)
        silenced = inputs.prepared["silenced"]
        return Loss(ppo.per_token * (1 - silenced), ppo.metrics | {"covariance/silenced": mean(silenced, inputs.loss_mask)})
