"""What the learner minimises on a micro-batch: policy loss × importance weight + KL penalty, per token; and how tokens add up.

Everything is per token until `token_weights` turns it into one number, so neither the cut into micro-batches nor the number
of ranks can change the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlcore.run.metrics import Max, Mean, Metrics, merge
from trainers import kl

Aggregation = Literal["token_mean", "sequence_mean", "constant"]


@dataclass(frozen=True)
class LossInputs:
    """A micro-batch, right-padded: everything (b, t); the log-probs are at the sampling temperature."""

    logprobs: Tensor  # of the model being trained, with gradient
    entropy: Tensor  # of its distribution, no gradient
    old_logprobs: Tensor  # of the model before this step's first update
    rollout_logprobs: Tensor  # of the engine when it sampled
    reference_logprobs: Tensor | None  # of the model that KL is measured to
    advantages: Tensor
    loss_mask: Tensor


@dataclass(frozen=True)
class Loss:
    per_token: Tensor  # (b, t)
    metrics: Metrics


PolicyLoss = Callable[[LossInputs], Loss]


@dataclass(frozen=True)
class Objective:
    """The recipe's algorithm as a function of a micro-batch."""

    policy_loss: PolicyLoss
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_coefficient: float = 0.0
    importance_sampling_cap: float | None = None

    def __call__(self, inputs: LossInputs) -> Loss:
        loss = self.policy_loss(inputs)
        per_token, metrics = loss.per_token, [loss.metrics, mismatch(inputs)]
        if self.importance_sampling_cap is not None:
            weights = truncated_importance_weights(inputs, self.importance_sampling_cap)
            per_token = per_token * weights
            capped = (weights >= self.importance_sampling_cap) * inputs.loss_mask
            metrics.append({"importance/capped": mean(capped, inputs.loss_mask)})
        if inputs.reference_logprobs is not None:
            penalty = getattr(kl, self.kl_estimator)(inputs.logprobs, inputs.reference_logprobs)
            per_token = per_token + self.kl_coefficient * penalty
            metrics.append({"kl/reference": mean(penalty.detach(), inputs.loss_mask)})
        return Loss(per_token, merge(metrics))


def truncated_importance_weights(inputs: LossInputs, cap: float) -> Tensor:
    """Token-level TIS (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"):
    min(π_old / π_rollout, cap), without gradient. Corrects for sampling from another distribution than the learner's."""
    return (inputs.old_logprobs - inputs.rollout_logprobs).clamp(-20, 20).exp().clamp(max=cap).detach()


def mismatch(inputs: LossInputs) -> Metrics:
    """How far the sampled distribution was from the learner's before the update, and the policy's entropy (nats)."""
    difference = (inputs.rollout_logprobs - inputs.old_logprobs).detach() * inputs.loss_mask
    return {
        "entropy": mean(inputs.entropy, inputs.loss_mask),
        "kl/rollout": mean(difference, inputs.loss_mask),
        "kl/rollout_max": Max(difference.abs().max().item()),
    }


def mean(values: Tensor, mask: Tensor) -> Mean:
    return Mean((values * mask).sum().item(), mask.sum().item())


def token_weights(loss_mask: Tensor, aggregate: Aggregation, constant_length: int) -> Tensor:
    """(B, T) weights whose sum with per-token losses is the mini-batch's loss; made from the whole mini-batch at once.

    token_mean      1 / Σ mask                  every token counts alike (DAPO, eq. 8)
    sequence_mean   1 / (B′ · |y_i|)            every completion counts alike (GRPO): long answers are cheap, the length bias
    constant        1 / (B · constant_length)   neither (Dr.GRPO, §3.2); constant_length is max_new_tokens

    B′ is the number of completions that are in the loss at all, B that of all: a constant that knew which completions were
    masked would be none.
    """
    lengths = loss_mask.sum(1, keepdim=True)
    denominator = {
        "token_mean": lengths.sum().clamp(min=1),
        "sequence_mean": (lengths > 0).sum().clamp(min=1) * lengths.clamp(min=1),
        "constant": torch.tensor(len(loss_mask) * constant_length),
    }[aggregate]
    return loss_mask / denominator
