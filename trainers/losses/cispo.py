"""CISPO (MiniMax 2025, MiniMax-M1, arXiv 2506.13585, eq. 4 and 5).

    L = −sg(clip(r, ratio_min, ratio_max))·A·log π        per token, r = π / π_old

PPO's clip takes the gradient from a token; this one bounds its importance weight and leaves every token a gradient,
−clip(r)·A·∇log π. Worked: A = 2, log π = −0.5, ratio_max = 5: r = 1.5 gives 1.5 with gradient −3, r = 8 gives 5 with −10.

The bounds are of the ratio, not of its distance from 1, so `ratio_max: 0.2` is refused. TRL's `loss_type="cispo"` also takes
its `epsilon_high` for the ratio's bound, but by default sets it to the 0.2 of PPO's clip: then every weight is 0.2, which
corrects nothing and makes the step five times smaller, without a word.
"""

from __future__ import annotations

from rlcore.errors import UserError
from trainers.losses.gpg import gpg
from trainers.objective import Loss, LossInputs, mean
from trainers.ratio import log_ratio


class Cispo:
    """`ratio_max` 5 is ScaleRL's (arXiv 2510.13786); `ratio_min` 0 is no bound. Raises UserError unless 1 lies between them."""

    def __init__(self, *, ratio_max: float = 5.0, ratio_min: float = 0.0) -> None:
        if not ratio_max >= 1:
            raise UserError(
                f"cispo: ratio_max is a ratio π/π_old, not a distance from 1: it must be at least 1, not {ratio_max:g}"
            )
        if not 0 <= ratio_min <= 1:
            raise UserError(
                f"cispo: ratio_min is a ratio π/π_old, not a distance from 1: it must be within [0, 1], not {ratio_min:g}"
            )
        self._ratio_min, self._ratio_max = ratio_min, ratio_max

    def __call__(self, inputs: LossInputs) -> Loss:
        ratio = log_ratio(inputs).detach().exp()
        weight = ratio.clamp(self._ratio_min, self._ratio_max)
        return Loss(weight * gpg(inputs).per_token, {"clip_fraction": mean(weight != ratio, inputs.loss_mask)})
