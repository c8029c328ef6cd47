"""PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7) with a whole completion as the action, as RLOO has it
(Ahmadian et al. 2024, arXiv 2402.14740, §3; the clip is that of its implementations).

    log s_i     = Σ_t (log π − log π_old) = log π(y_i) / π_old(y_i)        over the tokens of completion i in the loss
    log s_{i,t} = sg(log s_i) + |y_i|·(log π_t − sg(log π_t))              the completion's value, one token's gradient
    L           = max(−A·s, −A·clip(s, 1−clip_low, 1+clip_high))           at each of them

Meant for `aggregate: sequence_mean`: the mini-batch's loss is then the mean over completions of L_i, and its gradient, where
the clip is inactive, the mean of −A_i·s_i·Σ_t ∇log π, as in REINFORCE; `token_mean` would count L_i once per token. Clipping is
all or nothing for a completion, and s_i spreads with its length. Each token's part of the gradient is its own, so what weighs
tokens (a correction, the most uncertain ones) weighs them here too.
"""

from __future__ import annotations

from rlcore.recipe.schema import ClipLow, NonNegativeFloat
from trainers.objective import Loss, LossInputs
from trainers.ratio import clipped_surrogate, log_ratio


def ppo_clip_sequence(inputs: LossInputs, *, clip_low: ClipLow = 0.2, clip_high: NonNegativeFloat = 0.2) -> Loss:
    token = log_ratio(inputs)
    length = inputs.loss_mask.sum(1, keepdim=True)
    log_s = token.detach().sum(1, keepdim=True).clamp(-20, 20) + length * (token - token.detach())
    return clipped_surrogate(inputs, log_s, clip_low, clip_high)
