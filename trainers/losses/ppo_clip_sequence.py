"""PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7) with a whole completion as the action, as RLOO has it
(Ahmadian et al. 2024, arXiv 2402.14740, §3; the clip is that of its implementations).

    s_i = π(y_i) / π_old(y_i) = exp Σ_t (log π − log π_old)        over the tokens of completion i in the loss
    L = max(−A·s_i, −A·clip(s_i, 1−clip_low, 1+clip_high))         at each of them

Meant for `aggregate: sequence_mean`: the mini-batch's loss is then the mean over completions of L_i, and its gradient, where
the clip is inactive, the mean of −A_i·s_i·Σ_t ∇log π, as in REINFORCE; `token_mean` would count L_i once per token. Clipping is
all or nothing for a completion, and s_i spreads with its length.
"""

from __future__ import annotations

from trainers.losses.ppo_clip import clipped_surrogate, log_ratio
from trainers.objective import Loss, LossInputs


def ppo_clip_sequence(inputs: LossInputs, *, clip_low: float = 0.2, clip_high: float = 0.2) -> Loss:
    completion = log_ratio(inputs).sum(1, keepdim=True)
    return clipped_surrogate(inputs, completion.expand_as(inputs.logprobs), clip_low, clip_high)
