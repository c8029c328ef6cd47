"""PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7), with DAPO's separate upper bound ("clip-higher",
Yu et al. 2025, arXiv 2503.14476, eq. 10).

    r = exp(log π − log π_old)
    L = max(−A·r, −A·clip(r, 1−clip_low, 1+clip_high))        per token

Where the clip is active the gradient is zero; on the first pass r = 1 and the gradient is −A·∇log π.
"""

from __future__ import annotations

from rlcore.recipe.schema import ClipLow, NonNegativeFloat
from trainers.objective import Loss, LossInputs
from trainers.ratio import clipped_surrogate, log_ratio


def ppo_clip(inputs: LossInputs, *, clip_low: ClipLow = 0.2, clip_high: NonNegativeFloat = 0.2) -> Loss:
    return clipped_surrogate(inputs, log_ratio(inputs), clip_low, clip_high)
