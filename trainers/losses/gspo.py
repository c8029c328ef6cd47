"""Group Sequence Policy Optimization, in its token form (Zheng et al. 2025, arXiv 2507.18071, eq. 5 and GSPO-token).

    log s_i     = 1/|y_i| Σ_t (log π − log π_old)              over the tokens of completion i in the loss
    log s_{i,t} = sg(log s_i) + log π_t − sg(log π_t)          the value of the completion's ratio, the gradient of one token
    L           = max(−A·s, −A·clip(s, 1−clip_low, 1+clip_high))    at each of them

The ratio is of the whole completion, as its reward is, and the geometric mean keeps it near 1 at any length; hence bounds that
are a thousand times narrower than PPO's. Clipping is all or nothing for a completion (of one A). log s is clamped at 10.

Meant for `aggregate: sequence_mean`, which makes the gradient, where the clip is inactive, the mean over completions of
−A_i·s_i·1/|y_i| Σ_t ∇log π. Worked: tokens of ratios 1.21 and 1 have s = 1.1; with A = 2, unclipped, the loss is −2.2 and each
token's gradient −1.1.
"""

from __future__ import annotations

from rlcore.recipe.schema import ClipLow, NonNegativeFloat
from trainers.objective import Loss, LossInputs
from trainers.ratio import clipped_surrogate, log_ratio


def gspo(inputs: LossInputs, *, clip_low: ClipLow = 3e-4, clip_high: NonNegativeFloat = 4e-4) -> Loss:
    token = log_ratio(inputs)
    completion = token.sum(1, keepdim=True) / inputs.loss_mask.sum(1, keepdim=True).clamp(min=1)
    log_s = completion.detach() + (token - token.detach())
    return clipped_surrogate(inputs, log_s.clamp(max=10), clip_low, clip_high)
