"""A policy whose completions a compressed copy samples: what that changes in the loop.

The learner compresses (`compress.codec`), the engine decodes (`rollout.codes`), `algorithm.correction` corrects for the copy's
being another policy, and `trainers.guard` says whether it goes on. Evaluations are of the policy itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from rlcore.batch import GradedBatch, TrainingBatch
from rlcore.protocols import Engine, Learner, WeightUpdate
from rlcore.run.metrics import Metrics
from rollout.sync import push
from trainers.guard import Guard, Sent


class CompressedLearner:
    """The policy's learner, whose weights leave it compressed as long as the guard lets them. Keeps the contract of
    `rlcore.protocols.Learner`."""

    def __init__(self, policy: Learner, guard: Guard, clock: Callable[[], float] = time.perf_counter) -> None:
        self.policy, self.guard, self.clock = policy, guard, clock

    def logprobs(self, batch: GradedBatch) -> Tensor:
        return self.policy.logprobs(batch)

    def served_logprobs(self, batch: GradedBatch) -> Tensor:
        return self.policy.served_logprobs(batch)

    def update(self, batch: TrainingBatch) -> Metrics:
        return self.policy.update(batch)

    def weights(self, version: int, compressed: bool = True) -> WeightUpdate:
        compressed = compressed and self.guard.compresses(version)
        since = self.clock()
        update = self.policy.weights(version, compressed)
        self.guard.sent(Sent(update.manifest.nbytes, self.clock() - since, compressed))
        return update

    def save(self, folder: Path) -> None:
        self.policy.save(folder)

    def load(self, folder: Path) -> None:
        self.policy.load(folder)


class Uncompressed:
    """A run in which the policy itself samples."""

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """Within it the engine, which has nothing under way, serves the policy itself."""
        yield

    def measure(self, step: int, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> dict[str, float]:
        """What there is to report of a step, after its sync."""
        return {}

    def summary(self) -> dict[str, Any]:
        return {}


class CompressedRollouts(Uncompressed):
    def __init__(self, learner: CompressedLearner, engine: Engine, dtype: str) -> None:
        self.learner, self.engine, self.dtype, self.guard = learner, engine, dtype, learner.guard

    @contextmanager
    def exactly(self) -> Iterator[None]:
        version = self.engine.version
        if not self.guard.compresses(version):
            yield
            return
        since = self.learner.clock()
        there = push(self.learner.policy, self.engine, version, None, self.dtype)
        seconds = self.learner.clock() - since
        yield
        since = self.learner.clock()
        back = push(self.learner, self.engine, version, None, self.dtype)
        self.guard.besides(there.size + back.size, seconds + self.learner.clock() - since)

    def measure(self, step: int, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> dict[str, float]:
        return self.guard.measure(step, metrics, seconds)

    def summary(self) -> dict[str, Any]:
        return self.guard.summary()

    def state(self) -> Any:
        return self.guard.state()

    def restore(self, state: Any) -> None:
        self.guard.restore(state)
