"""A critic that shares the policy's body: one linear layer more on the states from which the tokens are predicted.

    L = L_policy + coefficient · L_value        per token, added up alike; L_value is that of `trainers.critic`

(Schulman et al. 2017, arXiv 1707.06347, eq. 9.) It costs neither a second model nor a second pass, and learns at the policy's
rate; but what it learns moves the policy's body too, and what the policy learns its values. There is no warm-up: the critic
cannot learn alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rlcore.batch import GradedBatch
from rlcore.run.metrics import union
from trainers.critic import ValueInputs, ValueObjective
from trainers.learner import Learner
from trainers.logprobs import TokenLogprobs, precision, states, token_logprobs_after
from trainers.objective import Loss, LossInputs, Objective, Part


class TokenLogprobsAndValues(TokenLogprobs):
    """The policy's outputs, and values (b, T), which begin at 0."""

    def __init__(self, model: nn.Module, learns_entropy: bool = False) -> None:
        super().__init__(model, learns_entropy)
        self.score = nn.Linear(self.plain.config.hidden_size, 1, device=self.plain.device)
        for parameter in self.score.parameters():
            nn.init.zeros_(parameter)

    def forward(  # type: ignore[override]
        self,
        dtype: torch.dtype,
        prompts: Sequence[tuple[int, ...]],
        tokens: Tensor,
        lengths: Sequence[int],
        temperature: float,
        chunks: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with precision(self.plain, dtype):
            hidden, where = states(self.plain.get_decoder(), prompts, tokens, lengths)
            logprobs, entropy = token_logprobs_after(
                self.plain, hidden, where, tokens, temperature, chunks, self.learns_entropy
            )
            flat = self.score(hidden)[:, 0].float()
        return logprobs, entropy, torch.zeros_like(logprobs).index_put(where, flat)


@dataclass(frozen=True)
class SharedInputs:
    """A micro-batch for both."""

    policy: LossInputs
    value: ValueInputs


@dataclass(frozen=True)
class SharedObjective:
    policy: Objective
    value: ValueObjective
    coefficient: float

    @property
    def bypasses(self) -> bool:
        return self.policy.bypasses

    def inputs(self, part: Part, outputs: tuple[Tensor, ...]) -> SharedInputs:
        logprobs, entropy, values = outputs
        return SharedInputs(self.policy.inputs(part, (logprobs, entropy)), self.value.inputs(part, (values,)))

    def prepare(self, look: Callable[[], SharedInputs], batch: GradedBatch) -> dict[str, Tensor]:
        return self.policy.prepare(lambda: look().policy, batch)

    def __call__(self, inputs: SharedInputs) -> Loss:
        policy, value = self.policy(inputs.policy), self.value(inputs.value)
        metrics = union([policy.metrics, {f"critic/{name}": metric for name, metric in value.metrics.items()}])
        return replace(policy, per_token=policy.per_token + self.coefficient * value.per_token, metrics=metrics)


class SharedActorCritic(Learner):
    """A policy's learner, with `SharedObjective` and the head `TokenLogprobsAndValues`. What it serves is the policy."""

    def values(self, batch: GradedBatch) -> Tensor:
        """(B, T) what it expects to be earned from each token on."""
        return self.outputs(batch, range(len(batch.tokens)))[2]
