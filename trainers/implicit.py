"""The implicit reward model of PRIME as a learner: a language model whose log-ratio to its beginning says what is right.

    log P(right)/P(wrong) = z_i = β · Σ_t [log π_φ(y_t | y_<t) − log π_ref(y_t | y_<t)]
    L = mean_i −[a_i log σ(z_i) + (1 − a_i) log(1 − σ(z_i))]         a_i: the accuracy

(PRIME: Cui et al. 2025, arXiv 2502.01456.) `rewards.process.prime` is the reward that asks it, and has it learn. It learns as
every model does (`trainers.learner`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rlcore.batch import GradedBatch
from rlcore.run.metrics import Metrics
from trainers.objective import Loss, Part, mean


@dataclass(frozen=True)
class ImplicitInputs:
    """A micro-batch, right-padded."""

    log_ratio: Tensor  # (b, t) log π_φ − log π_ref at temperature 1, with gradient
    loss_mask: Tensor  # (b, t)
    accuracy: Tensor  # (b,)


@dataclass(frozen=True)
class ImplicitObjective:
    """A completion's cross-entropy, in equal parts at its tokens in the loss: `aggregate: sequence_sum` makes the mean over
    completions of it. Those that have no such token count for nothing."""

    beta: float

    bypasses = True  # nobody asks for the log-probs before the update

    def inputs(self, part: Part, outputs: tuple[Tensor, ...]) -> ImplicitInputs:
        """The first of the outputs are the log-probs; the batch has the reference's."""
        logprobs, graded, reference = outputs[0], part.batch.graded, part.batch.reference_logprobs
        assert graded.accuracy is not None
        assert reference is not None
        mask = part.cut(graded.loss_mask, logprobs)
        log_ratio = (logprobs - part.cut(reference, logprobs)).masked_fill(mask == 0, 0)
        return ImplicitInputs(log_ratio, mask, graded.accuracy[part.index].to(logprobs.device))

    def prepare(self, look: Callable[[], ImplicitInputs], batch: GradedBatch) -> dict[str, Tensor]:
        return {}

    def __call__(self, inputs: ImplicitInputs) -> Loss:
        """`accuracy`: how often P(right) is on the right side of ½ (right where it is above)."""
        log_odds = self.beta * inputs.log_ratio.sum(1)
        error = binary_cross_entropy_with_logits(log_odds, inputs.accuracy, reduction="none")
        tokens = inputs.loss_mask.sum(1)
        sided = (log_odds.detach() > 0) == (inputs.accuracy == 1)
        metrics: Metrics = {"accuracy": mean(sided.float(), (tokens > 0).float())}
        return Loss(error[:, None] * inputs.loss_mask / tokens.clamp(min=1)[:, None], metrics)
