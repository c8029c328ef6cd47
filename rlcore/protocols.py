"""The three interfaces by which layers meet: Engine (rollout), Reward (rewards), Learner (trainers).

A lower layer that needs a higher one takes one of these as an argument.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rlcore.types import Completion, Group, Request, Score

if TYPE_CHECKING:
    from torch import Tensor

    from rlcore.batch import GradedBatch, TrainingBatch
    from rlcore.run.metrics import Metrics


Progress = Callable[[int], None]  # told how much more is done
Tokens = Sequence[int]


def no_progress(done: int) -> None:
    """For callers that nobody watches."""


@dataclass(frozen=True)
class WeightUpdate:
    """New weights for an engine, streamed in buckets of name → tensor.

    `checksums` has one entry per tensor of the update (`rollout.sync.checksum`); the engine takes nothing into use
    until every one of them has arrived and matches. A `full` update has the names of the plain checkpoint. An `adapter`
    update has for each adapted `MODULE.weight` the pair `MODULE.lora_A.weight` (r, in) and `MODULE.lora_B.weight` (out, r),
    with the scaling α/r in B: the engine serves W + B·A, W being the weights it was made with.
    """

    version: int
    buckets: Iterable[Mapping[str, Tensor]]
    checksums: Mapping[str, int]
    kind: Literal["full", "adapter"] = "full"


class Engine(ABC):
    """Where completions come from. Every token carries the log-prob and weight version it was sampled with."""

    @property
    @abstractmethod
    def version(self) -> int: ...

    @abstractmethod
    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests. Raises UserError for one that does not fit into the model's context."""

    @abstractmethod
    def poll(self) -> list[Completion]:
        """Work until at least one completion is finished and return all that are; empty when nothing is queued."""

    @abstractmethod
    def interrupt(self) -> list[Completion]:
        """Stop everything; return what was sampled so far with finish reason `interrupted`. `Completion.as_prefix` goes on."""

    def generate(self, requests: Sequence[Request], progress: Progress = no_progress) -> list[Completion]:
        """Submit and poll until done; completions in the order of their requests. `progress` hears how many are done."""
        self.submit(requests)
        done: dict[tuple[str, int, int], Completion] = {}
        while finished := self.poll():
            done.update({(c.problem_id, c.sample, c.seed): c for c in finished})
            progress(len(finished))
        return [done[r.problem_id, r.sample, r.seed] for r in requests]

    @abstractmethod
    def logprobs(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[list[float]]:
        """For each (prompt ids, completion ids) the log-probs of the completion's tokens at temperature 1 without truncation,
        under the weights served now."""

    @abstractmethod
    def sync(self, update: WeightUpdate) -> None:
        """Serve new weights. Raises SyncError, naming the tensor, when the update is partial, corrupted or stale."""

    @abstractmethod
    def checksums(self) -> Mapping[str, int]:
        """`rollout.sync.checksum` of the full weights served now, by name, taken from the memory that sampling reads; without
        those that it holds in another layout (packed, or merged with an adapter), where the parity probe stands alone."""

    @abstractmethod
    def close(self) -> None: ...

    @staticmethod
    @abstractmethod
    def cache_bytes(sequences: int, sequence_bytes: int, **options: Any) -> int:
        """The most memory that keys and values take with these options, for so many sequences at once and the bytes of one."""


class Reward(ABC):
    """One component of what a completion is worth. Takes its settings as keyword arguments, as the recipe names them."""

    verifiable: bool = False  # True: the raw value is accuracy (1 correct, 0 wrong), read by filters and statistics

    @abstractmethod
    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group. Sees the whole global batch before any filter; pure. The verifiable
        component is scored first, and the others find its values in `Group.accuracy`."""

    def close(self) -> None:  # noqa: B027 (most rewards hold nothing)
        """Release what the component holds (worker processes, models)."""


class StatefulReward(Reward):
    """A component that learns from the batches it scored. Its state is checkpointed; evaluation never updates it."""

    @abstractmethod
    def initial_state(self) -> Any:
        """The state before the first step; a JSON value."""

    @abstractmethod
    def update(self, groups: Sequence[Group], graded: GradedBatch, state: Any) -> tuple[Any, Metrics]:
        """The next state and what to report, once a step, after scoring. `groups` is what was scored, `graded` the valid
        completions among them."""


class Learner(Protocol):
    """What turns batches into new weights. One class trains every model; they differ in head and loss only."""

    def logprobs(self, batch: GradedBatch) -> Tensor:
        """(B, T) log-probs of the batch's tokens at its sampling temperature, without gradient."""

    def update(self, batch: TrainingBatch) -> Metrics:
        """One pass over the batch: one or more optimiser steps."""

    def weights(self, version: int) -> WeightUpdate:
        """The current policy weights: all of them, adapters merged in, or the adapters alone (`WeightUpdate` names both)."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...
