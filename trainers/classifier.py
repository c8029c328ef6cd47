"""A reward model as a classifier: the log-odds that a text is right, read at its last token.

    z = logit(right) − logit(wrong)        P(right) = σ(z)
    L = −w₁·y·log σ(z) − w₀·(1 − y)·log σ(−z)        averaged over the texts of the mini-batch

y is 1, 0 or a probability in between; w are the weights of the classes. A text is a completion of no tokens but one that nobody
sampled, which stands for its end: so the learner (`trainers.learner`) trains it as it trains every model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from rlcore.batch import GradedBatch, TrainingBatch
from rlcore.types import Sampling
from trainers.logprobs import precision, states
from trainers.objective import Loss, cut, mean

WRONG, RIGHT = 0, 1  # the labels of a reward model's head


class LogOdds(nn.Module):
    """z of a sequence-classification model with two labels: what `trainers.logprobs.TokenLogprobs` is to a policy."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        dtype: torch.dtype,
        prompts: Sequence[tuple[int, ...]],
        tokens: Tensor,
        lengths: Sequence[int],
        temperature: float,
        chunks: int,
    ) -> tuple[Tensor]:
        """(b, T) of each text of `prompts` at what follows it."""
        with precision(self.model, dtype):
            hidden, where = states(self.model.base_model, prompts, tokens, lengths)
            logits = self.model.score(hidden).float()
        nothing = torch.zeros(tuple(tokens.shape), device=logits.device)
        return (nothing.index_put(where, logits[:, RIGHT] - logits[:, WRONG]),)


@dataclass(frozen=True)
class LabelledInputs:
    """A micro-batch of b texts: everything (b, 1)."""

    log_odds: Tensor  # with gradient
    labels: Tensor
    mask: Tensor


@dataclass(frozen=True)
class CrossEntropy:
    """`weights` of wrong and right texts."""

    weights: tuple[float, float] = (1.0, 1.0)

    bypasses = True

    def inputs(
        self,
        batch: TrainingBatch,
        old: Tensor | None,
        prepared: Mapping[str, Tensor],
        index: Sequence[int],
        outputs: tuple[Tensor, ...],
    ) -> LabelledInputs:
        (log_odds,) = outputs
        assert batch.returns is not None  # the labels
        return LabelledInputs(log_odds, cut(batch.returns, index, log_odds), cut(batch.graded.loss_mask, index, log_odds))

    def prepare(self, look: Callable[[], LabelledInputs], batch: GradedBatch) -> dict[str, Tensor]:
        return {}

    def __call__(self, inputs: LabelledInputs) -> Loss:
        z, y = inputs.log_odds, inputs.labels
        wrong, right = self.weights
        loss = right * y * softplus(-z) + wrong * (1 - y) * softplus(z)
        return Loss(loss, {"accuracy": mean((z.detach() > 0) == (y > 0.5), inputs.mask)})


def labelled(texts: Sequence[Sequence[int]], labels: Sequence[float]) -> TrainingBatch:
    """Texts as token ids, each with a label, as the batch that a learner takes."""
    one, none = torch.ones(len(texts), 1), torch.zeros(len(texts), 1)
    graded = GradedBatch(
        prompt_ids=[tuple(text) for text in texts],
        tokens=none.long(),
        present=one,
        loss_mask=one,
        rollout_logprobs=none,
        versions=none.long(),
        truncated=torch.zeros(len(texts), dtype=torch.bool),
        sampling=Sampling(),
        group=torch.arange(len(texts)),
        rewards={},
        accuracy=None,
    )
    return TrainingBatch(graded, none, None, torch.tensor(labels, dtype=torch.float32)[:, None])
