"""The learner on several ranks, seen from the loop as one: `LearnerGroup` keeps the contract of `rlcore.protocols.Learner`.

Every rank gets the whole batch and works on its share of it; `LearnerRank` is what a rank holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rlcore.batch import GradedBatch, TrainingBatch
from rlcore.errors import UserError
from rlcore.protocols import Bucket, Manifest, Superseded, WeightUpdate
from rlcore.run.metrics import Metrics, merge
from rollout.transport import BroadcastUpdate, Sender, announce, meeting
from rollout.worker import to_wire
from trainers.critic import Critic
from trainers.learner import Learner
from trainers.ranks import Ranks
from trainers.scorer import Scorer
from trainers.shared_critic import SharedActorCritic

if TYPE_CHECKING:
    from rollout.broadcast import Broadcaster


class LearnerGroup:
    """The loop's end. `sender` broadcasts the weights, if not all of them go by the object store."""

    def __init__(self, ranks: Ranks, sender: Sender | None = None) -> None:
        self.ranks, self.sender = ranks, sender

    def logprobs(self, batch: GradedBatch) -> Tensor:
        return scores(self.ranks, "logprobs", batch)

    def served_logprobs(self, batch: GradedBatch) -> Tensor:
        return scores(self.ranks, "served_logprobs", batch)

    def values(self, batch: GradedBatch) -> Tensor:
        """A critic's, or those of a policy that it shares."""
        return scores(self.ranks, "values", batch)

    def update(self, batch: TrainingBatch) -> Metrics:
        import ray

        return merge(self.ranks.call("update", ray.put(batch)))

    def weights(self, version: int, compressed: bool = False) -> WeightUpdate:
        manifest: Manifest = self.ranks.call("announce", version, compressed)[0]
        buckets = _RemoteBuckets(self.ranks, version, "next_bucket")
        if self.sender is None or manifest.kind != "full":  # the others are small, and vLLM takes them another way
            return WeightUpdate(manifest, buckets)
        announced = _RemoteBuckets(self.ranks, version, "next_announced")
        return BroadcastUpdate(manifest, buckets, announced, self.sender)

    def save(self, folder: Path) -> None:
        """As the local learner's; the folder must be one that rank 0's machine sees too."""
        self.ranks.call("save", folder.absolute())  # a rank's current folder is another one
        if not (folder / "learner.safetensors").exists():
            raise UserError(
                f"rank 0 wrote its checkpoint where this machine does not see it: put {folder} on a shared file system"
            )

    def load(self, folder: Path) -> None:
        self.ranks.call("load", folder.absolute())


class RemoteSender:
    """Rank 0 as it broadcasts to workers whose engines have `processes` each (`rollout.transport.Sender`)."""

    def __init__(self, ranks: Ranks, processes: int) -> None:
        self.ranks, self.processes = ranks, processes
        self._thread = ThreadPoolExecutor(1)

    def open(self, workers: int) -> tuple[list[dict[str, Any]], Callable[[], Any]]:
        address, port = self.ranks.call("free_address")[0]
        groups = meeting(address, port, workers, self.processes)
        return groups, self._begin("open", address, port, 1 + workers * self.processes)

    def send(self) -> Callable[[], Any]:
        return self._begin("send")

    def _begin(self, method: str, *arguments: Any) -> Callable[[], Any]:
        return self._thread.submit(self.ranks.call, method, *arguments).result


class RemoteReference:
    """A reference model on ranks, which gives its log-probs by the call `method`."""

    def __init__(self, ranks: Ranks, method: str) -> None:
        self.ranks, self.method = ranks, method

    def logprobs(self, batch: GradedBatch) -> Tensor:
        return scores(self.ranks, self.method, batch)


def scores(ranks: Ranks, method: str, batch: GradedBatch) -> Tensor:
    """(B, T) what the call `method` of the ranks gives for the batch."""
    import ray

    result: Tensor = ranks.call(method, ray.put(batch))[0]
    return result


@dataclass(frozen=True)
class _RemoteBuckets:
    """Buckets of the weight update `version`, as the call `method` of the ranks makes each when it is asked for."""

    ranks: Ranks
    version: int
    method: str

    def __iter__(self) -> Iterator[Bucket]:
        self.ranks.call("rewind", self.version)
        while (bucket := self.ranks.call(self.method)[0]) is not None:
            yield bucket


class LearnerRank:
    """A rank's end: its share of the learner, and of the reference model where that lives here too."""

    def __init__(self, learner: Learner, reference: Scorer | None, rank: int) -> None:
        self.learner, self.reference, self.rank = learner, reference, rank
        self._broadcaster: Broadcaster | None = None
        self._announced: Bucket | None = None

    def logprobs(self, batch: GradedBatch) -> Tensor | None:
        """As all scores: every rank has them, and rank 0 hands them out."""
        found = self.learner.logprobs(batch)
        return None if self.rank else found

    def served_logprobs(self, batch: GradedBatch) -> Tensor | None:
        found = self.learner.served_logprobs(batch)
        return None if self.rank else found

    def values(self, batch: GradedBatch) -> Tensor | None:
        assert isinstance(self.learner, Critic | SharedActorCritic)  # `trainers.parts` asks no other
        found = self.learner.values(batch)
        return None if self.rank else found

    def reference_logprobs(self, batch: GradedBatch) -> Tensor | None:
        assert self.reference is not None
        found = self.reference.logprobs(batch)
        return None if self.rank else found

    def update(self, batch: TrainingBatch) -> Metrics:
        return self.learner.update(batch)

    def announce(self, version: int, compressed: bool = False) -> Manifest:
        self._weights = self.learner.weights(version, compressed)
        return self._weights.manifest

    def rewind(self, version: int) -> None:
        """Begin with the buckets of an update anew. Raises Superseded where another one has been announced since."""
        if self._weights.manifest.version != version:
            raise Superseded
        self._buckets = iter(self._weights.buckets)

    def next_bucket(self) -> Bucket | None:
        """Every rank makes it (under ZeRO-3 each has a part); rank 0 hands it out, with tensors in the object store."""
        import ray

        bucket = next(self._buckets, None)
        if bucket is None or self.rank:
            return None
        return replace(bucket, tensors=ray.put(to_wire(bucket.tensors)))  # type: ignore[arg-type]

    def next_announced(self) -> Bucket | None:
        """As `next_bucket`, and rank 0 keeps the tensors, to `send` them."""
        bucket = next(self._buckets, None)
        if bucket is None or self.rank:
            return None
        self._announced = bucket
        return announce(bucket)

    def free_address(self) -> tuple[str, int]:
        """Where the workers can reach this process."""
        import ray
        from vllm.utils.network_utils import get_open_port

        return ray.util.get_node_ip_address(), get_open_port()

    def open(self, address: str, port: int, world_size: int) -> None:
        """Have rank 0 wait there for those it will broadcast to."""
        if self.rank:
            return
        if self._broadcaster is None:
            from rollout.broadcast import Broadcaster

            self._broadcaster = Broadcaster()
        self._broadcaster.open(address, port, world_size)

    def send(self) -> None:
        """Have rank 0 broadcast the bucket that it announced last."""
        if self.rank:
            return
        assert self._broadcaster is not None
        assert self._announced is not None
        self._broadcaster.send(self._announced.tensors)
        self._announced = None  # no bucket is held while the next one is made

    def save(self, folder: Path) -> None:
        self.learner.save(folder)

    def load(self, folder: Path) -> None:
        self.learner.load(folder)
