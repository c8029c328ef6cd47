"""From the graded batch to what the learner sees: choose groups, ask the reference model and the critic, estimate advantages.

Here a KL term in the reward is paid: −coefficient · estimate of KL(π_rollout ‖ π_ref) at each token, from the log-probs that
it was sampled with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from rlcore.batch import Advantages, GradedBatch, TrainingBatch, rows
from rlcore.errors import UserError
from rlcore.protocols import Reference
from rlcore.recipe.schema import KL
from rlcore.run.metrics import Mean, Metrics
from trainers import kl
from trainers.algorithm import Advantage
from trainers.objective import mean

NO_PENALTY = KL()


class Valuer(Protocol):
    """A critic, here or in other processes."""

    def values(self, batch: GradedBatch) -> Tensor:
        """(B, T) what it expects to be earned from each token on."""


class Prepare:
    """`select` restricts the batch to the groups worth training on; `mask_truncated` takes cut completions out of the loss;
    `reference` is the model that the term `penalty` measures the distance to."""

    def __init__(
        self,
        select: Callable[[GradedBatch], GradedBatch],
        advantage: Advantage,
        reference: Reference | None,
        mask_truncated: bool,
        penalty: KL = NO_PENALTY,
        critic: Valuer | None = None,
    ) -> None:
        self.select, self.advantage, self.reference, self.mask_truncated = select, advantage, reference, mask_truncated
        self.penalty, self.critic = penalty, critic

    def __call__(self, graded: GradedBatch) -> tuple[TrainingBatch, Metrics]:
        chosen = self.select(graded)
        if self.mask_truncated:
            chosen = replace(chosen, loss_mask=chosen.loss_mask * ~chosen.truncated[:, None])
        if not chosen.loss_mask.any():  # every group was dropped, told its members nothing apart, or was cut off
            nothing = rows(chosen, [])
            return TrainingBatch(nothing, torch.zeros(nothing.tokens.shape), None), {"groups/trained": Mean(0, 1)}
        metrics: Metrics = {"groups/trained": Mean(len(chosen.group.unique()), 1)}
        reference = self.reference.logprobs(chosen) if self.reference is not None else None
        if reference is not None and self.penalty.place == "reward":
            estimate = getattr(kl, self.penalty.estimator)(chosen.rollout_logprobs, reference)
            estimate = estimate.masked_fill(chosen.loss_mask == 0, 0)
            chosen = replace(chosen, rewards=chosen.rewards | {"kl": -self.penalty.coefficient * estimate})
            metrics["kl/reference"] = mean(estimate, chosen.loss_mask)
        if self.critic is not None:
            chosen = replace(chosen, values=self.critic.values(chosen))
        advantages = self.advantage(chosen)
        if not isinstance(advantages, Advantages):
            raise UserError(f"the advantage returned a {type(advantages).__name__}: return rlcore.batch.Advantages")
        if advantages.policy.shape != chosen.tokens.shape:
            found, wanted = tuple(advantages.policy.shape), tuple(chosen.tokens.shape)
            raise UserError(f"the advantage has shape {found}: it is one number per token, {wanted} (expand_as(batch.tokens))")
        if self.critic is not None and (advantages.returns is None or not torch.isfinite(advantages.returns).all()):
            raise UserError("the advantage gives the critic no finite `returns` to learn: return them beside `policy`")
        if not torch.isfinite(advantages.policy).all():
            raise UserError("an advantage is not finite: the estimator met a batch that it cannot handle")
        metrics["groups/degenerate"] = Mean(advantages.degenerate.sum().item(), len(chosen.tokens))
        return TrainingBatch(chosen, advantages.policy.float(), reference, advantages.returns), metrics
