"""What the learner minimises on a micro-batch: policy loss × importance weight + KL penalty, per token; and how tokens add up.

Everything is per token until `token_weights` turns it into one number, so neither the cut into micro-batches nor the number
of ranks can change the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rlcore.recipe.schema import Correction
from rlcore.run.metrics import Max, Mean, Metrics, merge
from trainers import kl
from trainers.correction import importance_weights

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
    correction: Correction | None = None

    @property
    def bypasses(self) -> bool:
        """Whether the policy loss takes its ratio to the sampler, so that nobody asks for `old_logprobs`."""
        return self.correction is not None and self.correction.form == "bypass"

    def __call__(self, inputs: LossInputs) -> Loss:
        mask, rollout = inputs.loss_mask, inputs.rollout_logprobs
        learner = inputs.logprobs.detach() if self.bypasses else inputs.old_logprobs
        loss = self.policy_loss(replace(inputs, old_logprobs=rollout) if self.bypasses else inputs)
        weights, outside = importance_weights(learner - rollout, mask, self.correction)
        per_token = loss.per_token * weights
        metrics = [loss.metrics, mismatch(learner, rollout, outside, mask)]
        metrics.append({"entropy": mean(inputs.entropy, mask)})
        if inputs.reference_logprobs is not None:
            penalty = getattr(kl, self.kl_estimator)(inputs.logprobs, inputs.reference_logprobs)
            per_token = per_token + self.kl_coefficient * penalty
            metrics.append({"kl/reference": mean(penalty.detach(), mask)})
        return Loss(per_token, merge(metrics))


def mismatch(learner: Tensor, rollout: Tensor, outside: Tensor, mask: Tensor) -> Metrics:
    """How far the learner was from the sampler: before the step, or in bypass as it is now; all (b, t).

    kl/rollout                       KL(sampler ‖ learner) by k1, nats: unbiased, of either sign
    kl/rollout_k3                    the same by k3: never negative, so that differences of either sign add up
    importance/ratio_max             the largest learner / sampler ratio of a token
    importance/capped                share of tokens whose ratio a correction found `outside` its bounds; 0 without one
    importance/capped_completions    share of completions with such a token
    """
    return {
        "kl/rollout": mean(kl.k1(rollout, learner), mask),
        "kl/rollout_k3": mean(kl.k3(rollout, learner), mask),
        "importance/ratio_max": Max(((learner - rollout).clamp(-20, 20).exp() * mask).max().item()),
        "importance/capped": mean(outside, mask),
        "importance/capped_completions": mean((outside * mask).amax(1), mask.amax(1)),
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
