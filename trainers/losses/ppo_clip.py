"""PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7), with DAPO's separate upper bound ("clip-higher",
Yu et al. 2025, arXiv 2503.14476, eq. 10).

    r = exp(log π − log π_old)
    L = max(−A·r, −A·clip(r, 1−clip_low, 1+clip_high))        per token

Where the clip is active the gradient is zero; on the first pass r = 1 and the gradient is −A·∇log π.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.run.metrics import Max, Mean
from trainers.objective import Loss, LossInputs


def ppo_clip(inputs: LossInputs, *, clip_low: float = 0.2, clip_high: float = 0.2) -> Loss:
    return clipped_surrogate(inputs, log_ratio(inputs), clip_low, clip_high)


def log_ratio(inputs: LossInputs) -> Tensor:
    """(b, t) log π − log π_old, within ±20; 0 outside the loss, where the log-probs may be anything, −inf included."""
    return (inputs.logprobs - inputs.old_logprobs).masked_fill(inputs.loss_mask == 0, 0).clamp(-20, 20)


def clipped_surrogate(inputs: LossInputs, log_ratio: Tensor, clip_low: float, clip_high: float) -> Loss:
    """L for log-ratios (b, t), whatever they are measured over."""
    ratio = log_ratio.clamp(-20, 20).exp()
    unclipped = -inputs.advantages * ratio
    clipped = -inputs.advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    mask = inputs.loss_mask
    active = (clipped > unclipped) * mask
    return Loss(
        torch.maximum(unclipped, clipped),
        {
            "clip_fraction": Mean(active.sum().item(), mask.sum().item()),
            "ratio/max": Max((ratio * mask).max().item()),
        },
    )
