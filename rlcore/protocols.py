"""The three interfaces by which layers meet: Engine (rollout), Reward (rewards), Learner (trainers).

A lower layer that needs a higher one takes one of these as an argument.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rlcore.types import Completion, Group, Request, Score

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from rlcore.batch import GradedBatch, TrainingBatch
    from rlcore.run.metrics import Metrics


Progress = Callable[[int], None]  # told how much more is done
Tokens = Sequence[int]
Kind = Literal["full", "adapter", "sparse", "codes"]  # of a weight update; see Manifest


def no_progress(done: int) -> None:
    """For callers that nobody watches."""


@dataclass(frozen=True)
class Manifest:
    """What a weight update will bring: the shape of every tensor, by name.

    A `full` update has the names of the plain checkpoint. An `adapter` update has for each adapted `MODULE.weight` the pair
    `MODULE.lora_A.weight` (r, in) and `MODULE.lora_B.weight` (out, r), with the scaling α/r in B: the engine serves W + B·A, W
    being the weights it was made with. A `sparse` update has for each weight `NAME` of which a few entries are trained the pair
    `NAME.places` (n,) int32, each once, and `NAME.values` (n,), and beside them whole tensors by their names: the engine serves
    the weights it was made with, with these in their places. A `codes` update has for each weight that is compressed what
    `rollout.codes` says, and the others as a full one: the engine serves what they decode to.
    """

    version: int
    shapes: Mapping[str, tuple[int, ...]]
    kind: Kind = "full"
    compressed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of `codes`: weight → its `Held.settings`
    nbytes: int = 0  # of all tensors


@dataclass(frozen=True)
class Bucket:
    """Some tensors of the weight update `version`, number `index` of its buckets, each with its `rollout.sync.checksum`; with
    those of compressed weights also the checksum of what they decode to, by the weight's name."""

    version: int
    index: int
    tensors: Mapping[str, Tensor]
    checksums: Mapping[str, int]


@dataclass(frozen=True)
class WeightUpdate:
    """New weights for an engine, streamed. `buckets` are made while they are iterated over, one at a time; they can be iterated
    over again, and are the same ones, until the learner's next update; then that raises Superseded."""

    manifest: Manifest
    buckets: Iterable[Bucket]


class Superseded(Exception):
    """The buckets of a weight update are asked for again, and the learner has begun its next one since."""


class LearnerLost(Exception):
    """A process that trains died or hangs, and the others wait for it in vain. The message says which and why."""


class Engine(ABC):
    """Where completions come from. Every token carries the log-prob and weight version it was sampled with."""

    context: int  # tokens that the longest prompt and its completion can have together
    capacity: int  # sequences that are decoded together; more wait in a queue
    verifies: type | UnionType | None = None  # the kinds of drafters (`rollout.drafters`) that it takes; None: it takes none

    @property
    @abstractmethod
    def version(self) -> int: ...

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether anything submitted is still to be returned."""

    @abstractmethod
    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests. Raises UserError for one that does not fit into the model's context."""

    @abstractmethod
    def poll(self) -> list[Completion]:
        """Work for a moment (one token of everything under way, say) and return what is finished by then, often nothing."""

    @abstractmethod
    def interrupt(self) -> list[Completion]:
        """Stop everything; return what was sampled so far with finish reason `interrupted`, or whole what ended just
        then. `Completion.resumed` goes on."""

    def generate(self, requests: Sequence[Request], progress: Progress = no_progress) -> list[Completion]:
        """Submit and poll until done; completions in the order of their requests. `progress` hears how many are done."""
        self.submit(requests)
        done: dict[tuple[str, int, int], Completion] = {}
        while self.busy:
            finished = self.poll()
            done.update({(c.problem_id, c.sample, c.seed): c for c in finished})
            progress(len(finished))
        return [done[r.problem_id, r.sample, r.seed] for r in requests]

    @abstractmethod
    def logprobs(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[list[float]]:
        """For each (prompt ids, completion ids) the log-probs of the completion's tokens at temperature 1 without truncation,
        under the weights served now."""

    def sync(self, update: WeightUpdate) -> dict[str, int]:
        """Serve new weights; returns the checksums that were sent with them. Raises SyncError, naming the tensor, when the
        update is stale, partial, corrupted or out of order. From its beginning to its successful end nothing is sampled: an
        engine that was left between two versions refuses to work until a sync succeeds."""
        sent: dict[str, int] = {}
        self.begin_sync(update.manifest)
        for bucket in update.buckets:
            self.receive(bucket)
            sent |= bucket.checksums
        self.end_sync()
        return sent

    @abstractmethod
    def begin_sync(self, manifest: Manifest) -> None:
        """Stop serving and expect these tensors. Raises SyncError where they are not the model's; then it serves on."""

    @abstractmethod
    def receive(self, bucket: Bucket) -> None:
        """Take the next bucket in, no more of it than that being held twice."""

    @abstractmethod
    def end_sync(self) -> None:
        """Serve what was received, if it is all there; nothing computed by the old weights is used any more."""

    @abstractmethod
    def checksums(self) -> Mapping[str, int]:
        """`rollout.sync.checksum` of the full weights served now, by name, taken from the memory that sampling reads, and of
        the `NAME.values` that a sparse update set; without those that it holds in another layout (packed, or merged with an
        adapter), where the parity probe stands alone."""

    def metrics(self) -> Metrics:
        """What there is to report of the work since the last call."""
        return {}

    @abstractmethod
    def close(self) -> None: ...

    @staticmethod
    @abstractmethod
    def cache_bytes(sequences: int, sequence_bytes: int, **options: Any) -> int:
        """The most memory that keys and values take with these options, for so many sequences at once and the bytes of one."""


class Reward(ABC):
    """One component of what a completion is worth. Takes its settings as keyword arguments, as the recipe names them."""

    verifiable: bool = False  # True: the raw value is accuracy (1 correct, 0 wrong), read by filters and statistics
    reads_accuracy: bool = False  # True: it looks into `Group.accuracy`, or learns from it, so something must be verifiable
    reads_budget: bool = False  # True: it looks into the problem's length budget (`rlcore.length_budget`)
    reads_length: bool = False  # True: it goes by how many tokens or steps a completion has, whoever wrote them
    max_tokens: int | None = None  # the length at which it takes a completion for too long; None: it has none
    compares_group: bool = False  # True: what it pays a completion depends on the others of the problem
    pays_steps: bool = False  # True: what it spreads over the tokens are rewards of steps, each where its step ends
    separator: str = ""  # between the steps that it finds in a completion's text; empty: it looks for none

    @abstractmethod
    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group. Sees the whole global batch before any filter; pure. The verifiable
        component is scored first, and the others find its values in `Group.accuracy`; one that reads them is asked about the
        completions that could be verified, and no others."""

    def begin(self, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027 (most rewards read text alone)
        """Told the policy's tokenizer, before the first batch; the time to load what it scores with."""

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


class LearnedReward(StatefulReward):
    """A component of a language model that learns in the run. It begins as the policy does; `trainers.parts` makes it, and its
    `learner` is checkpointed beside the policy's."""

    learner: Learner | None = None  # None before `learn_with`

    @abstractmethod
    def learn_with(self, learner: Learner, reference: Reference) -> None:
        """Given what trains the model, and the same model as it began, before the first batch."""


class Reference(Protocol):
    """A model that is asked for log-probs and does not learn, here or in another process."""

    def logprobs(self, batch: GradedBatch) -> Tensor:
        """(B, T) as those of a learner."""


class Learner(Protocol):
    """What turns batches into new weights. One class trains every model; they differ in head and loss only."""

    def logprobs(self, batch: GradedBatch) -> Tensor:
        """(B, T) log-probs of the batch's tokens at its sampling temperature, without gradient."""

    def update(self, batch: TrainingBatch) -> Metrics:
        """One pass over the batch: one or more optimiser steps."""

    def served_logprobs(self, batch: GradedBatch) -> Tensor:
        """The same under the weights of the last `weights`, as an engine is to serve them: reconstructed where they were
        compressed."""

    def weights(self, version: int, compressed: bool = False) -> WeightUpdate:
        """The current policy weights: all of them, adapters merged in, or what is trained alone, or compressed by the learner's
        codec (the kinds of `Manifest`)."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...
