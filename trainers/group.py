"""The learner on several ranks, seen from the loop as one: `LearnerGroup` keeps the contract of `rlcore.protocols.Learner`.

Every rank gets the whole batch and works on its share of it; `LearnerRank` is what a rank holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from rlcore.batch import GradedBatch, TrainingBatch
from rlcore.protocols import Bucket, Manifest, Superseded, WeightUpdate
from rlcore.run.metrics import Metrics, merge
from rollout.worker import to_wire
from trainers.learner import Learner
from trainers.ranks import Ranks
from trainers.scorer import Scorer


class LearnerGroup:
    """The loop's end."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.updates = 0

    def logprobs(self, batch: GradedBatch) -> Tensor:
        return RemoteScorer(self.ranks, "logprobs").logprobs(batch)

    def update(self, batch: TrainingBatch) -> Metrics:
        import ray

        self.updates += 1
        return merge(self.ranks.call("update", ray.put(batch)))

    def weights(self, version: int) -> WeightUpdate:
        manifest: Manifest = self.ranks.call("announce", version)[0]
        return WeightUpdate(manifest, _RemoteBuckets(self, self.updates))

    def save(self, folder: Path) -> None:
        """As the local learner's; the folder must be one that rank 0's machine sees too."""
        self.ranks.call("save", folder)

    def load(self, folder: Path) -> None:
        self.ranks.call("load", folder)

    def close(self) -> None:
        self.ranks.close()


class RemoteScorer:
    """A model on ranks that is asked for log-probs by the call `method`, as `trainers.scorer.Scorer` is."""

    def __init__(self, ranks: Ranks, method: str) -> None:
        self.ranks, self.method = ranks, method

    def logprobs(self, batch: GradedBatch) -> Tensor:
        import ray

        result: Tensor = self.ranks.call(self.method, ray.put(batch))[0]
        return result


@dataclass(frozen=True)
class _RemoteBuckets:
    """Buckets whose tensors lie in the object store, where rank 0 puts each when it is asked for."""

    group: LearnerGroup
    updates: int  # of the learner, when they were made

    def __iter__(self) -> Iterator[Bucket]:
        if self.updates != self.group.updates:
            raise Superseded
        self.group.ranks.call("rewind")
        while (bucket := self.group.ranks.call("next_bucket")[0]) is not None:
            yield bucket


class LearnerRank:
    """A rank's end: its share of the learner, and of the reference model where that lives here too."""

    def __init__(self, learner: Learner, reference: Scorer | None, rank: int) -> None:
        self.learner, self.reference, self.rank = learner, reference, rank

    def logprobs(self, batch: GradedBatch) -> Tensor:
        return self.learner.logprobs(batch)

    def reference_logprobs(self, batch: GradedBatch) -> Tensor:
        assert self.reference is not None
        return self.reference.logprobs(batch)

    def update(self, batch: TrainingBatch) -> Metrics:
        return self.learner.update(batch)

    def announce(self, version: int) -> Manifest:
        self._weights = self.learner.weights(version)
        return self._weights.manifest

    def rewind(self) -> None:
        self._buckets = iter(self._weights.buckets)

    def next_bucket(self) -> Bucket | None:
        """Every rank makes it (under ZeRO-3 each has a part); rank 0 hands it out."""
        import ray

        bucket = next(self._buckets, None)
        if bucket is None or self.rank:
            return None
        return replace(bucket, tensors=ray.put(to_wire(bucket.tensors)))  # type: ignore[arg-type]

    def save(self, folder: Path) -> None:
        self.learner.save(folder)

    def load(self, folder: Path) -> None:
        self.learner.load(folder)
