"""The critic of PPO: a model with a head of one number, which predicts before each token what is still to be earned.

    L = ½ · max( (V − R)², (V_old + clip(V − V_old, ±c) − R)² )        per token, averaged over the tokens of the mini-batch

R are the returns that the advantage estimator made; the clip, which keeps V near the values before the step, is that of PPO's
implementations (Engstrom et al. 2020, arXiv 2005.12729). The critic learns as every model does (`trainers.learner`), and
`ActorCritic` makes one learner of it and the policy. In its warm-up it learns alone (value pre-training, as in VAPO: Yue et al.
2025, arXiv 2504.05118).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlcore import protocols
from rlcore.batch import GradedBatch, TrainingBatch
from rlcore.protocols import WeightUpdate
from rlcore.run.metrics import Metrics
from trainers.learner import Learner
from trainers.logprobs import HeadScores
from trainers.objective import Loss, Part, mean


class TokenValues(HeadScores):
    """The values of a token-classification model with one label: what `trainers.logprobs.TokenLogprobs` is to a policy."""

    def read(self, logits: Tensor) -> Tensor:
        return logits[:, 0]


@dataclass(frozen=True)
class ValueInputs:
    """A micro-batch, right-padded: everything (b, t)."""

    values: Tensor  # of the model being trained, with gradient
    old_values: Tensor  # before this step's first update
    returns: Tensor
    loss_mask: Tensor


@dataclass(frozen=True)
class ValueObjective:
    """What the critic minimises; `clip` None leaves the clip out."""

    clip: float | None

    bypasses = True  # the values before the step are in the batch

    def inputs(self, part: Part, outputs: tuple[Tensor, ...]) -> ValueInputs:
        """The first of the outputs are the values."""
        values, graded, returns = outputs[0], part.batch.graded, part.batch.returns
        assert graded.values is not None  # they are what the returns were made of
        assert returns is not None
        return ValueInputs(values, *(part.cut(each, values) for each in (graded.values, returns, graded.loss_mask)))

    def prepare(self, look: Callable[[], ValueInputs], batch: GradedBatch) -> dict[str, Tensor]:
        return {}

    def __call__(self, inputs: ValueInputs) -> Loss:
        values, old, returns, mask = inputs.values, inputs.old_values, inputs.returns, inputs.loss_mask
        error = (values - returns) ** 2
        metrics: Metrics = {"error": mean(error.detach(), mask), "value": mean(values.detach(), mask)}
        if self.clip is not None:
            clipped = (old + (values - old).clamp(-self.clip, self.clip) - returns) ** 2
            metrics["clip_fraction"] = mean((clipped > error).float(), mask)
            error = torch.maximum(error, clipped)
        return Loss(0.5 * error, metrics)


class Critic(Learner):
    """With `ValueObjective` and the head `TokenValues`."""

    def values(self, batch: GradedBatch) -> Tensor:
        """(B, T) what it expects to be earned from each token on."""
        return self.outputs(batch, range(len(batch.tokens)))[0]


class ActorCritic:
    """The policy's learner and the critic as one. Keeps the contract of `rlcore.protocols.Learner`: what it serves and scores
    is the policy's; in a checkpoint the critic has a folder of its own in that of the policy."""

    def __init__(self, policy: protocols.Learner, critic: protocols.Learner, warmup_steps: int) -> None:
        self.policy, self.critic, self.warmup_steps = policy, critic, warmup_steps
        self.steps = 0

    def logprobs(self, batch: GradedBatch) -> Tensor:
        return self.policy.logprobs(batch)

    def update(self, batch: TrainingBatch) -> Metrics:
        """The critic learns from every batch, the policy once the critic is warm."""
        self.steps += 1
        learned = {f"critic/{name}": metric for name, metric in self.critic.update(batch).items()}
        if self.steps > self.warmup_steps:
            learned |= self.policy.update(batch)
        return learned

    def served_logprobs(self, batch: GradedBatch) -> Tensor:
        return self.policy.served_logprobs(batch)

    def weights(self, version: int, compressed: bool = False) -> WeightUpdate:
        return self.policy.weights(version, compressed)

    def save(self, folder: Path) -> None:
        self.policy.save(folder)
        (folder / "critic").mkdir()
        self.critic.save(folder / "critic")
        (folder / "critic" / "steps.json").write_text(json.dumps(self.steps))

    def load(self, folder: Path) -> None:
        self.policy.load(folder)
        self.critic.load(folder / "critic")
        self.steps = json.loads((folder / "critic" / "steps.json").read_text())
