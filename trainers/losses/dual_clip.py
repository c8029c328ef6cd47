"""PPO with a dual clip (Ye et al. 2020, "Mastering complex control in MOBA games", arXiv 1912.09729, eq. 5).

    L = min(L_PPO, −A·c)    where A < 0,        L = L_PPO    elsewhere;    c > 1

Where A < 0, L_PPO = |A|·r has no bound above: a token that the policy has made much likelier since it was sampled, and whose
completion turned out bad, would rule the step. Beyond r = c its gradient is zero. Worked, with c = 3: A = −2 and r = 5 give 6,
not 10; A = 2 and r = 5 give −2.4, as in PPO.

c ≤ 1 would also stop the tokens of the first pass, where r = 1: it is refused.
"""

from __future__ import annotations

import torch

from rlcore.errors import UserError
from trainers.losses.ppo_clip import ppo_clip
from trainers.objective import Loss, LossInputs, mean


class DualClip:
    """`bound`: c. Raises UserError unless it is above 1."""

    def __init__(self, *, bound: float = 3.0, clip_low: float = 0.2, clip_high: float = 0.2) -> None:
        if not bound > 1:
            raise UserError(f"dual_clip: bound must be above 1, not {bound:g}: on the first pass every ratio is 1")
        self._bound, self._clip_low, self._clip_high = bound, clip_low, clip_high

    def __call__(self, inputs: LossInputs) -> Loss:
        ppo = ppo_clip(inputs, clip_low=self._clip_low, clip_high=self._clip_high)
        bound = -inputs.advantages * self._bound
        bounded = (inputs.advantages < 0) & (ppo.per_token > bound)
        return Loss(
            torch.where(bounded, bound, ppo.per_token),
            ppo.metrics | {"dual_clip_fraction": mean(bounded, inputs.loss_mask)},
        )
