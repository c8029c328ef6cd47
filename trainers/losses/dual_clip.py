"""PPO with a dual clip (Ye et al. 2020, "Mastering complex control in MOBA games", arXiv 1912.09729, eq. 5).

    L = min(L_PPO, −A·c)    where A < 0,        L = L_PPO    elsewhere;    c > 1

Where A < 0, L_PPO = |A|·r has no bound above: a token that the policy has made much likelier since it was sampled, and whose
completion turned out bad, would rule the step. Beyond r = c its gradient is zero. Worked, with c = 3: A = −2 and r = 5 give 6,
not 10; A = 2 and r = 5 give −2.4, as in PPO.

c ≤ 1 would also stop the tokens of the first pass, where r = 1: it is refused.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from rlcore.recipe.schema import ClipLow, NonNegativeFloat
from trainers.losses.ppo_clip import ppo_clip
from trainers.objective import Loss, LossInputs, mean


def dual_clip(
    inputs: LossInputs,
    *,
    bound: Annotated[float, Field(gt=1)] = 3.0,
    clip_low: ClipLow = 0.2,
    clip_high: NonNegativeFloat = 0.2,
) -> Loss:
    """`bound`: c."""
    ppo = ppo_clip(inputs, clip_low=clip_low, clip_high=clip_high)
    highest = -inputs.advantages * bound
    bounded = (inputs.advantages < 0) & (ppo.per_token > highest)
    return Loss(
        torch.where(bounded, highest, ppo.per_token),
        ppo.metrics | {"dual_clip_fraction": mean(bounded, inputs.loss_mask)},
    )
