"""PRIME's implicit process rewards (Cui et al. 2025, arXiv 2502.01456): how much likelier a model that learns in the run finds
a token than it did before.

    r_t = β · [log π_φ(y_t | y_<t) − log π_ref(y_t | y_<t)]        for every token that the policy sampled
    log P(right)/P(wrong) = Σ_t r_t                                of the whole completion: its value

Both models begin as the policy does, and π_ref stays so. Every step, after it has scored, π_φ learns from what was verified,
by the cross-entropy between P(right) and the accuracy (`trainers.implicit`). So no step is ever labelled; the rewards of a
batch are those of the weights before its update, and in the first step nothing. It learns from all valid completions, also of
groups that the policy does not train on.

The log-probs are those at temperature 1, whatever the completions were sampled at. β is 0.05 in the paper. Its authors' code
pays the log-ratio without β, and scales it over the batch: see `weight`, and `scale_to` of the advantage `prime`, which has the
leave-one-out that belongs to these rewards.

Worked: log-ratios 2, −1, 3 at β = 0.05 are r = 0.1, −0.05, 0.15; their sum 0.2 is P(right) = 0.5498, and the cross-entropy is
0.5981 where the answer is right, 0.7981 where it is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import PositiveFloat
from torch import Tensor

from rewards.judge import probability
from rlcore.batch import GradedBatch, TrainingBatch, batch_from, pad
from rlcore.errors import UserError
from rlcore.protocols import LearnedReward, Learner, Reference
from rlcore.run.metrics import Metrics
from rlcore.types import Completion, Group, Score, Scored

Key = tuple[tuple[int, ...], tuple[int, ...]]  # prompt ids, token ids


class Prime(LearnedReward):
    """`learning_rate` and `max_grad_norm` of π_φ; what else its optimiser does, and how batches are cut, is as for the policy.
    Before it has a learner it pays what it would in the first step."""

    pays_steps = True
    reads_accuracy = True

    def __init__(
        self, *, beta: PositiveFloat = 0.05, learning_rate: PositiveFloat = 1e-6, max_grad_norm: PositiveFloat = 10.0
    ) -> None:
        self.beta, self.learning_rate, self.max_grad_norm = beta, learning_rate, max_grad_norm
        self.learner: Learner | None = None
        self._reference: Reference | None = None
        self._known: dict[Key, Tensor] = {}  # log π_ref of what was scored since the last update, which asks for it again

    def learn_with(self, learner: Learner, reference: Reference) -> None:
        self.learner, self._reference = learner, reference

    def initial_state(self) -> None:
        """All it knows is in the learner."""

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group."""
        completions = [completion for group in groups for completion in group.completions]
        if self.learner is None or self._reference is None or not completions:
            return [Scored(0.0, "nothing learned yet") for _ in completions]
        group = [g for g, group in enumerate(groups) for _ in group.completions]
        batch = _at_temperature_1(batch_from(completions, completions[0].sampling, group=group, rewards={}, accuracy=None))
        learned, reference = self.learner.logprobs(batch), self._reference.logprobs(batch)
        rewards = self.beta * (learned - reference).masked_fill(batch.loss_mask == 0, 0).double()
        for completion, row in zip(completions, reference, strict=True):
            self._known[completion.prompt_ids, completion.token_ids] = row[: len(completion.token_ids)]
        return [_scored(completion, row) for completion, row in zip(completions, rewards, strict=True)]

    def update(self, groups: Sequence[Group], graded: GradedBatch, state: Any) -> tuple[None, Metrics]:
        """One update of π_φ, of as many optimiser steps as the policy's. Reports the learner's metrics."""
        if graded.accuracy is None or self.learner is None:
            raise UserError("prime learns from which completions are right, in a run of `job: rl` that has a verifiable reward")
        lengths = graded.lengths.long().tolist()
        keys = [(ids, tuple(row[:n].tolist())) for ids, row, n in zip(graded.prompt_ids, graded.tokens, lengths, strict=True)]
        reference = pad([self._known[key].tolist() for key in keys], torch.float32)
        self._known.clear()
        batch = TrainingBatch(_at_temperature_1(graded), torch.zeros(graded.tokens.shape), reference)
        return None, self.learner.update(batch)


def _at_temperature_1(batch: GradedBatch) -> GradedBatch:
    return replace(batch, sampling=replace(batch.sampling, temperature=1.0))


def _scored(completion: Completion, rewards: Tensor) -> Score:
    per_token = tuple(rewards[: len(completion.token_ids)].tolist())
    log_odds = sum(per_token)
    return Scored(log_odds, f"P(right) {probability(log_odds):.2f}", per_token=per_token)
