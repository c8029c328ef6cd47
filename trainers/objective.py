"""What the learner minimises on a micro-batch, per token; and how tokens add up.

    policy loss × importance weight × [token is among the most uncertain] + KL penalty − entropy bonus + imitation

Everything is per token until `token_weights` turns it into one number, so neither the cut into micro-batches nor the number
of ranks can change the result. What takes a whole mini-batch to know (a quantile, the completions that one is compared with) is
made before it is cut, by `prepare`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from rlcore.batch import GradedBatch, TrainingBatch
from rlcore.errors import UserError
from rlcore.recipe.schema import KL, Correction, Entropy
from rlcore.run.metrics import Max, Mean, Metrics, union
from trainers import kl
from trainers.correction import importance_weights

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]


@dataclass(frozen=True)
class Part:
    """Some completions of a batch, as they are about to be learned from."""

    batch: TrainingBatch
    index: Sequence[int]
    old: Tensor | None  # (B, T) log-probs before the step's first update; None where this is it
    prepared: Mapping[str, Tensor] = field(default_factory=dict)  # (B, T) each

    def cut(self, values: Tensor, like: Tensor) -> Tensor:
        """Of values (B, T) those of these completions, as wide and where `like` (b, t) is."""
        return values[self.index][:, : like.shape[1]].to(like.device)


Inputs = TypeVar("Inputs")


class LearnerObjective(Protocol[Inputs]):
    """What a learner minimises, of whatever it makes for itself of a batch and of the outputs of the learner's module."""

    @property
    def bypasses(self) -> bool:
        """Whether nobody asks for the log-probs before the step's first update."""

    def inputs(self, part: Part, outputs: tuple[Tensor, ...]) -> Inputs:
        """Of a part for which the module gave `outputs`, (b, t) each."""

    def prepare(self, look: Callable[[], Inputs], batch: GradedBatch) -> Mapping[str, Tensor]:
        """Facts about a mini-batch of n completions by name, (n, T) each. `look` makes its inputs, by a forward pass."""

    def __call__(self, inputs: Inputs) -> Loss: ...


@dataclass(frozen=True)
class LossInputs:
    """A micro-batch, right-padded: everything (b, t); the log-probs are at the sampling temperature."""

    logprobs: Tensor  # of the model being trained, with gradient
    entropy: Tensor  # of its distribution; with gradient where the recipe has an entropy bonus
    old_logprobs: Tensor  # of the model before this step's first update
    rollout_logprobs: Tensor  # of the engine when it sampled
    reference_logprobs: Tensor | None  # of the model that KL is measured to
    advantages: Tensor
    loss_mask: Tensor
    prepared: Mapping[str, Tensor] = field(default_factory=dict)  # this micro-batch's part of what `prepare` made


@dataclass(frozen=True)
class Loss:
    per_token: Tensor  # (b, t), to be added up by `token_weights`
    metrics: Metrics
    normalised: Tensor | None = None  # (b, t), terms with denominators of their own, to be added up as they are


PolicyLoss = Callable[[LossInputs], Loss]
Look = Callable[[], LossInputs]
"""Makes the inputs of a whole mini-batch, without gradient, by a forward pass over it."""


class PreparedLoss(Protocol):
    """A policy loss that takes facts about its whole mini-batch, of n completions."""

    def prepare(self, look: Look, batch: GradedBatch) -> Mapping[str, Tensor]:
        """The facts by name, (n, T) each. `look` costs a forward pass: a loss that needs no log-probs does not call it."""

    def __call__(self, inputs: LossInputs) -> Loss: ...


@dataclass(frozen=True)
class Objective:
    """The recipe's algorithm as a function of a micro-batch."""

    policy_loss: PolicyLoss | PreparedLoss
    kl: KL = field(default_factory=KL)
    correction: Correction | None = None
    entropy: Entropy = field(default_factory=Entropy)
    imitation: float = 0.0

    @property
    def bypasses(self) -> bool:
        """Whether the policy loss takes its ratio to the sampler, so that nobody asks for `old_logprobs`."""
        return self.correction is not None and self.correction.form == "bypass"

    def inputs(self, part: Part, outputs: tuple[Tensor, ...]) -> LossInputs:
        (logprobs, entropy), batch, reference = outputs, part.batch, part.batch.reference_logprobs
        return LossInputs(
            logprobs=logprobs,
            entropy=entropy,
            old_logprobs=logprobs.detach() if part.old is None else part.cut(part.old, logprobs),
            rollout_logprobs=part.cut(batch.graded.rollout_logprobs, logprobs),
            reference_logprobs=None if reference is None else part.cut(reference, logprobs),
            advantages=part.cut(batch.advantages, logprobs),
            loss_mask=part.cut(batch.graded.loss_mask, logprobs),
            prepared={name: part.cut(fact, logprobs) for name, fact in part.prepared.items()},
        )

    def prepare(self, look: Look, batch: GradedBatch) -> dict[str, Tensor]:
        """Facts about a mini-batch, (n, T) each: the policy loss's own, `uncertain` and `imitated`."""
        seen = functools.cache(lambda: self._seen(look()))
        facts = dict(self.policy_loss.prepare(seen, batch)) if hasattr(self.policy_loss, "prepare") else {}
        if taken := facts.keys() & {"uncertain", "imitated"}:
            raise UserError(f"the policy loss prepares {min(taken)!r}, which the objective does: give it another name")
        if self.entropy.top_quantile < 1:
            facts["uncertain"] = most_uncertain(seen().entropy, batch.loss_mask, self.entropy.top_quantile)
        if self.imitation:
            assert batch.accuracy is not None  # `trainers.plan` refuses imitation where nothing is verified
            correct = batch.loss_mask * (batch.accuracy == 1)[:, None]
            facts["imitated"] = correct / correct.sum().clamp(min=1)
        return facts

    def __call__(self, inputs: LossInputs) -> Loss:
        inputs = self._seen(inputs)
        mask, rollout = inputs.loss_mask, inputs.rollout_logprobs
        learner = inputs.logprobs.detach() if self.bypasses else inputs.old_logprobs
        loss = checked(self.policy_loss(inputs), inputs)
        weights, outside = importance_weights(learner - rollout, mask, self.correction)
        weights = weights * inputs.prepared.get("uncertain", 1)
        per_token = loss.per_token * weights
        metrics = [loss.metrics, mismatch(learner, rollout, outside, mask)]
        metrics.append({"entropy": mean(inputs.entropy.detach(), mask)})
        if inputs.reference_logprobs is not None and self.kl.place == "loss":
            penalty = getattr(kl, self.kl.estimator)(inputs.logprobs, inputs.reference_logprobs)
            per_token = per_token + self.kl.coefficient * penalty
            metrics.append({"kl/reference": mean(penalty.detach(), mask)})
        if self.entropy.bonus:
            per_token = per_token - self.entropy.bonus * inputs.entropy
        normalised = None if loss.normalised is None else loss.normalised * weights
        if self.imitation:
            imitated = inputs.prepared["imitated"]
            metrics.append({"imitation": mean(-inputs.logprobs.detach(), (imitated > 0).to(mask.dtype))})
            imitation = -self.imitation * inputs.logprobs * imitated
            normalised = imitation if normalised is None else normalised + imitation
        return Loss(per_token, union(metrics), normalised)

    def _seen(self, inputs: LossInputs) -> LossInputs:
        """As the policy loss sees them: 0 outside the loss, where log-probs may be anything, −inf included; in bypass the
        sampler's log-probs in the place of the old ones."""
        outside = inputs.loss_mask == 0
        rollout = inputs.rollout_logprobs.masked_fill(outside, 0)
        reference = inputs.reference_logprobs
        return replace(
            inputs,
            logprobs=inputs.logprobs.masked_fill(outside, 0),
            entropy=inputs.entropy.masked_fill(outside, 0),
            old_logprobs=rollout if self.bypasses else inputs.old_logprobs.masked_fill(outside, 0),
            rollout_logprobs=rollout,
            reference_logprobs=None if reference is None else reference.masked_fill(outside, 0),
        )


def checked(loss: Loss, inputs: LossInputs) -> Loss:
    """What a policy loss returned. Raises UserError where that cannot be learned from."""
    if not isinstance(loss, Loss):
        raise UserError(f"the policy loss returned a {type(loss).__name__}: return trainers.objective.Loss")
    parts = [part for part in (loss.per_token, loss.normalised) if part is not None]
    for part in parts:
        if part.shape != inputs.loss_mask.shape:
            found, wanted = tuple(part.shape), tuple(inputs.loss_mask.shape)
            raise UserError(f"the policy loss has shape {found}: it is one number per token, {wanted}, and never a sum")
    detached = inputs.logprobs.requires_grad and not any(part.requires_grad for part in parts)
    if detached and any(part.any() for part in parts):
        raise UserError("the policy loss has no gradient: something in it was detached from LossInputs.logprobs")
    if strange := [name for name, metric in loss.metrics.items() if not isinstance(metric, Mean | Max)]:
        raise UserError(f"the policy loss's metric {strange[0]!r} is no Mean or Max: make it with trainers.objective.mean")
    return loss


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


def most_uncertain(entropy: Tensor, mask: Tensor, share: float) -> Tensor:
    """1 for the `share` of the tokens in the loss with the highest entropy, 0 for the others; all (n, T). Learning from these
    alone: Wang et al. 2025, "Beyond the 80/20 rule", arXiv 2506.01939, eq. 5."""
    inside = entropy[mask.bool()]
    if not len(inside):
        return mask
    return (entropy >= torch.quantile(inside.double(), 1 - share)).to(mask.dtype)


def token_weights(loss_mask: Tensor, aggregate: Aggregation, constant_length: int) -> Tensor:
    """(B, T) weights whose sum with per-token losses is the mini-batch's loss; made from the whole mini-batch at once.

    token_mean      1 / Σ mask                  every token counts alike (DAPO, eq. 8)
    sequence_mean   1 / (B′ · |y_i|)            every completion counts alike (GRPO): long answers are cheap, the length bias
    sequence_sum    1 / B′                      a completion's loss is the sum of its tokens': that of its log-probability
    constant        1 / (B · constant_length)   neither (Dr.GRPO, §3.2); constant_length is max_new_tokens

    B′ is the number of completions that are in the loss at all, B that of all: a constant that knew which completions were
    masked would be none.
    """
    lengths = loss_mask.sum(1, keepdim=True)
    denominator = {
        "token_mean": lengths.sum().clamp(min=1),
        "sequence_mean": (lengths > 0).sum().clamp(min=1) * lengths.clamp(min=1),
        "sequence_sum": (lengths > 0).sum().clamp(min=1),
        "constant": torch.tensor(len(loss_mask) * constant_length),
    }[aggregate]
    return loss_mask / denominator
