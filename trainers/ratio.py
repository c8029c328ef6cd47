"""The ratio of the policy that is trained to the one before the step, and PPO's clip of it, which several losses share."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.run.metrics import Max, Mean
from trainers.objective import Loss, LossInputs


def log_ratio(inputs: LossInputs) -> Tensor:
    """(b, t) log π − log π_old, within ±20; 0 outside the loss."""
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
