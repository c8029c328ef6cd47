"""A reward model as a classifier: the log-odds that what was read is right, at each end (`rewards.judged_text`).

    z = logit(right) − logit(wrong)        P(right) = σ(z)
    L = −w₁·y·log σ(z) − w₀·(1 − y)·log σ(−z)        averaged over the ends in the mini-batch

y is 1, 0 or a probability in between; w are the weights of the classes. The learner (`trainers.learner`) trains it as it trains
every model: z is read where a language model would predict the token after the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlcore.batch import GradedBatch, TrainingBatch, pad
from rlcore.types import Sampling
from trainers.judged import Labelled
from trainers.logprobs import HeadScores
from trainers.objective import Loss, Part, mean

WRONG, RIGHT = 0, 1  # the labels of a reward model's head


class LogOdds(HeadScores):
    """z of a classifier of texts or tokens with two labels: what `trainers.logprobs.TokenLogprobs` is to a policy."""

    def read(self, logits: Tensor) -> Tensor:
        return logits[:, RIGHT] - logits[:, WRONG]


@dataclass(frozen=True)
class LabelledInputs:
    """A micro-batch, right-padded: everything (b, t)."""

    log_odds: Tensor  # with gradient
    labels: Tensor
    mask: Tensor


@dataclass(frozen=True)
class CrossEntropy:
    """`weights` of wrong and right texts."""

    weights: tuple[float, float] = (1.0, 1.0)

    bypasses = True

    def inputs(self, part: Part, outputs: tuple[Tensor, ...]) -> LabelledInputs:
        (log_odds,) = outputs
        assert part.batch.returns is not None  # the labels
        return LabelledInputs(log_odds, part.cut(part.batch.returns, log_odds), part.cut(part.batch.graded.loss_mask, log_odds))

    def prepare(self, look: Callable[[], LabelledInputs], batch: GradedBatch) -> dict[str, Tensor]:
        return {}

    def __call__(self, inputs: LabelledInputs) -> Loss:
        z, y = inputs.log_odds, inputs.labels
        wrong, right = self.weights
        loss = right * y * softplus(-z) + wrong * (1 - y) * softplus(z)
        return Loss(loss, {"accuracy": mean((z.detach() > 0) == (y > 0.5), inputs.mask)})


def batch_of(texts: Sequence[Labelled]) -> TrainingBatch:
    """As the learner takes them. What comes before and at the first end is the prompt, what comes after it the completion; and
    the label of an end stands where the token after it does, from which it is read."""
    tails = [(*text.row.ids[text.row.ends[0] + 1 :], 0) for text in texts]
    tokens = pad(tails, torch.long)
    mask, labels = torch.zeros(tokens.shape), torch.zeros(tokens.shape)
    for i, text in enumerate(texts):
        places = [end - text.row.ends[0] for end in text.row.ends]
        mask[i, places], labels[i, places] = 1.0, torch.tensor(text.labels)
    graded = GradedBatch(
        prompt_ids=[text.row.ids[: text.row.ends[0] + 1] for text in texts],
        tokens=tokens,
        present=pad([(1,) * len(tail) for tail in tails], torch.float32),
        loss_mask=mask,
        rollout_logprobs=torch.zeros(tokens.shape),
        versions=torch.zeros(tokens.shape, dtype=torch.long),
        truncated=torch.zeros(len(texts), dtype=torch.bool),
        sampling=Sampling(),
        group=torch.arange(len(texts)),
        rewards={},
        accuracy=None,
    )
    return TrainingBatch(graded, torch.zeros(tokens.shape), None, labels)
