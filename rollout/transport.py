"""How a weight update goes from GPU to GPU: what the learner (`trainers.group`) and the pool (`rollout.pool`) agree on.

The learner's rank 0 and the processes of all workers' engines are one NCCL group. For each bucket, in lockstep,

    1. every rank makes it, and rank 0 keeps it on its GPU and announces it: names, dtypes, shapes and checksums;
    2. the pool has every worker receive what was announced, which waits for the tensors, and then rank 0 broadcast them;
    3. the workers compare each tensor with its checksum before they load it, and the pool waits for all of them.

So each side holds one bucket, and a sync that fails says which tensor, before it ends. A group cannot change its members: where
they are not those of the last sync, or the learner is another one, all meet anew. A worker that replaces another one in between
gets the weights by the object store, and so do all of them where one dies in the middle of a sync and rank 0 got through. Where
it did not (NCCL waits for the dead for ever), the learner is lost, and starts again from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from rlcore.protocols import Bucket, WeightUpdate


@dataclass(frozen=True)
class BroadcastUpdate(WeightUpdate):
    """A full update that `sender` can also broadcast. `buckets` carry their tensors, as ever; `announced` are the same with
    tensors of the meta device, each to be sent before the next is asked for."""

    announced: Iterable[Bucket]
    sender: Sender


class Sender(Protocol):
    """The learner's rank 0, as the pool sees it."""

    processes: int  # of each worker's engine, all of which receive

    def open(self, workers: int) -> tuple[list[dict[str, Any]], Callable[[], Any]]:
        """What each worker's `Receiver.join` needs for all of them to meet rank 0, which waits for them from now on; and the
        call that returns when they have met."""

    def send(self) -> Callable[[], Any]:
        """Have rank 0 broadcast the bucket that was announced last. Returns the call that waits until it is sent."""


class Receiver(Protocol):
    """An engine whose `receive` takes buckets that are announced only."""

    def join(self, group: Mapping[str, Any]) -> None:
        """Meet rank 0 where `group` says: the fields of vLLM's init info for its workers. Returns when all have met."""


def announce(bucket: Bucket) -> Bucket:
    """What there is to know of the bucket, without its bytes."""
    return replace(bucket, tensors={name: torch.empty_like(t, device="meta") for name, t in bucket.tensors.items()})


def is_announced(bucket: Bucket) -> bool:
    """Whether the bytes come another way."""
    return any(tensor.is_meta for tensor in bucket.tensors.values())


def meeting(address: str, port: int, workers: int, processes: int) -> list[dict[str, Any]]:
    """For each worker the fields of vLLM's NCCLWeightTransferInitInfo: after the learner, rank 0, come the workers' processes.
    The tensors of a bucket are broadcast one by one, not packed, which takes no buffer beside them."""
    common = {"master_address": address, "master_port": port, "world_size": 1 + workers * processes, "packed": False}
    return [common | {"rank_offset": 1 + worker * processes} for worker in range(workers)]
