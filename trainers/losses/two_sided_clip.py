"""GRPO's two-sided clip (Prime Intellect Team 2025, INTELLECT-2, arXiv 2505.07291).

    L = max(−A·min(r, δ), −A·clip(r, 1−clip_low, 1+clip_high)),    δ > 1 + clip_high

PPO's clip bounds r above only where A > 0; here it is bounded where A < 0 too, at δ, beyond which the gradient is zero. Since
δ > 1 + clip_high the minimum changes nothing where A > 0, so this is `dual_clip` with `bound: δ`, under the name and the
condition of this paper; TRL calls it `delta`. Worked, with δ = 4: A = −2 and r = 5 give 8, r = 3 gives 6.
"""

from __future__ import annotations

from rlcore.errors import UserError
from rlcore.recipe.schema import ClipLow, NonNegativeFloat
from trainers.losses.dual_clip import dual_clip
from trainers.objective import Loss, LossInputs


class TwoSidedClip:
    """`delta`: δ. Raises UserError unless it is above 1 + `clip_high`."""

    def __init__(self, *, delta: float = 4.0, clip_low: ClipLow = 0.2, clip_high: NonNegativeFloat = 0.2) -> None:
        if not delta > 1 + clip_high:
            raise UserError(f"two_sided_clip: delta must be above 1 + clip_high ({1 + clip_high:g}), not {delta:g}")
        self._delta, self._clip_low, self._clip_high = delta, clip_low, clip_high

    def __call__(self, inputs: LossInputs) -> Loss:
        return dual_clip(inputs, bound=self._delta, clip_low=self._clip_low, clip_high=self._clip_high)
