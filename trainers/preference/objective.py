"""What a learner minimises on pairs: a loss of the margin by which the better answer is ahead of the worse.

    margin = r(x, y_w) − r(x, y_l)      r: the implicit reward of an answer (`rewards.implicit_reward`)
    L = mean over pairs of loss(margin)

A batch has the two answers of a pair one after the other, the better first. A pair's loss stands at its tokens in equal parts:
`aggregate: sequence_sum` makes the mean over pairs of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards.implicit_reward import ImplicitReward
from rlcore.batch import GradedBatch, TrainingBatch
from rlcore.run.metrics import Metrics
from trainers.learner import Learner
from trainers.objective import Loss, Part, mean


class PreferenceLoss(ABC):
    """Takes its settings as keyword arguments, as the recipe names them."""

    reward: ImplicitReward

    @abstractmethod
    def __call__(self, margin: Tensor) -> Tensor:
        """(n,) losses of pairs from r(y_w) − r(y_l)."""


@dataclass(frozen=True)
class PairInputs:
    """A micro-batch of n pairs, right-padded: everything (2n, t)."""

    logprobs: Tensor  # with gradient
    reference: Tensor | None
    mask: Tensor


@dataclass(frozen=True)
class PairObjective:
    loss: PreferenceLoss

    bypasses = True  # nobody asks for the log-probs before the update

    def inputs(self, part: Part, outputs: tuple[Tensor, ...]) -> PairInputs:
        """The first of the outputs are the log-probs."""
        logprobs, reference = outputs[0], part.batch.reference_logprobs
        return PairInputs(
            logprobs,
            None if reference is None else part.cut(reference, logprobs),
            part.cut(part.batch.graded.loss_mask, logprobs),
        )

    def prepare(self, look: Callable[[], PairInputs], batch: GradedBatch) -> dict[str, Tensor]:
        return {}

    def rewards(self, inputs: PairInputs) -> Tensor:
        """(n, 2): of the better and of the worse."""
        return self.loss.reward(inputs.logprobs, inputs.reference, inputs.mask).view(-1, 2)

    def __call__(self, inputs: PairInputs) -> Loss:
        rewards = self.rewards(inputs)
        return spread(self.loss(rewards[:, 0] - rewards[:, 1]), inputs.mask, pair_metrics(rewards.detach()))


def spread(losses: Tensor, mask: Tensor, metrics: Metrics) -> Loss:
    """Losses (n,) of pairs over the tokens of both of their answers."""
    per_answer = losses.repeat_interleave(2) / mask.sum(1)
    return Loss(per_answer[:, None] * mask, metrics)


def pair_metrics(rewards: Tensor) -> Metrics:
    """accuracy     share of pairs in which the better answer is ahead
    margin       by how much on average
    chosen, rejected    mean implicit rewards"""
    chosen, rejected = rewards.unbind(1)
    each = torch.ones_like(chosen)
    ahead = (chosen > rejected).to(chosen.dtype)
    return {
        "accuracy": mean(ahead, each),
        "margin": mean(chosen - rejected, each),
        "reward/chosen": mean(chosen, each),
        "reward/rejected": mean(rejected, each),
    }


Judged = dict[str, Tensor]  # (n, …) each, of n pairs


class PairLearner(Learner):
    """A learner of `PairObjective`."""

    together = 2

    @torch.no_grad()
    def looks(self, batch: TrainingBatch) -> Sequence[tuple[list[int], PairInputs]]:
        """The inputs of the whole batch without gradient and dropout, micro-batch by micro-batch, with the rows of each."""
        self.model.eval()
        found = []
        for each in self.passes(batch.graded, range(len(batch.advantages))):
            outputs = self.forward(batch.graded, each)
            found.append((each.rows, self.objective.inputs(Part(batch, each.rows, None), outputs)))
        self.model.train()
        return found

    def judged(self, batch: TrainingBatch) -> Judged:
        """The batch's pairs, in their order."""
        looks = self.looks(batch)
        order = torch.tensor([row // 2 for rows, _ in looks for row in rows[::2]]).argsort()

        def together(of: Callable[[PairInputs], Tensor]) -> Tensor:
            return torch.cat([of(inputs).cpu() for _, inputs in looks])[order]

        return {name: together(of) for name, of in self.extractors().items()}

    def extractors(self) -> dict[str, Callable[[Any], Tensor]]:
        """What is made of a micro-batch's inputs, (n, …) each: `rewards`, (n, 2)."""
        assert isinstance(self.objective, PairObjective)
        return {"rewards": self.objective.rewards}
