"""From the graded batch to what the learner sees: choose groups, ask the reference model, estimate advantages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from rlcore.batch import GradedBatch, TrainingBatch
from rlcore.errors import UserError
from rlcore.run.metrics import Mean, Metrics
from trainers.algorithm import Advantage


class Reference(Protocol):
    """A `trainers.scorer.Scorer`, here or in another process."""

    def logprobs(self, batch: GradedBatch) -> Tensor: ...


class Prepare:
    """`select` restricts the batch to the groups worth training on; `mask_truncated` takes cut completions out of the loss;
    `reference` is the model that a KL term measures the distance to."""

    def __init__(
        self,
        select: Callable[[GradedBatch], GradedBatch],
        advantage: Advantage,
        reference: Reference | None,
        mask_truncated: bool,
    ) -> None:
        self.select, self.advantage, self.reference, self.mask_truncated = select, advantage, reference, mask_truncated

    def __call__(self, graded: GradedBatch) -> tuple[TrainingBatch, Metrics]:
        chosen = self.select(graded)
        if self.mask_truncated:
            chosen = replace(chosen, loss_mask=chosen.loss_mask * ~chosen.truncated[:, None])
        if not len(chosen.tokens):  # every group was dropped or told its members nothing apart
            return TrainingBatch(chosen, torch.zeros(chosen.tokens.shape), None), {"groups/trained": Mean(0, 1)}
        reference = self.reference.logprobs(chosen) if self.reference is not None else None
        advantages = self.advantage(chosen)
        if not torch.isfinite(advantages.policy).all():
            raise UserError("an advantage is not finite: the estimator met a batch that it cannot handle")
        metrics: Metrics = {
            "groups/degenerate": Mean(advantages.degenerate.sum().item(), len(chosen.tokens)),
            "groups/trained": Mean(len(chosen.group.unique()), 1),
        }
        return TrainingBatch(chosen, advantages.policy, reference), metrics
