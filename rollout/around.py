"""An engine around another one, for those that change what is asked of an engine and leave the rest to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlcore.protocols import Bucket, Engine, Manifest, Tokens, WeightUpdate
from rlcore.run.metrics import Metrics
from rlcore.types import Completion, Request


class Around(Engine):
    """Has the weights, the context and the capacity of `engine`. What is left to say is `submit` and `poll`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.context, self.capacity = engine.context, engine.capacity

    def divided(self, requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
        """Those of one problem, so many at a time. Those at temperature 0 are submitted as they are."""
        self.engine.submit([request for request in requests if not request.sampling.temperature])
        groups: dict[str, list[Request]] = {}
        for request in requests:
            if request.sampling.temperature:
                groups.setdefault(request.problem_id, []).append(request)
        for asked in groups.values():
            for first in range(0, len(asked), size):
                yield asked[first : first + size]

    @property
    def version(self) -> int:
        return self.engine.version

    @property
    def busy(self) -> bool:
        return self.engine.busy

    def interrupt(self) -> list[Completion]:
        raise NotImplementedError("what is begun here cannot go on with other weights: the recipe refuses such modes")

    def logprobs(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[list[float]]:
        return self.engine.logprobs(sequences)

    def sync(self, update: WeightUpdate) -> dict[str, int]:
        return self.engine.sync(update)

    def begin_sync(self, manifest: Manifest) -> None:
        self.engine.begin_sync(manifest)

    def receive(self, bucket: Bucket) -> None:
        self.engine.receive(bucket)

    def end_sync(self) -> None:
        self.engine.end_sync()

    def checksums(self) -> Mapping[str, int]:
        return self.engine.checksums()

    def metrics(self) -> Metrics:
        return self.engine.metrics()

    def close(self) -> None:
        self.engine.close()

    @staticmethod
    def cache_bytes(sequences: int, sequence_bytes: int, **options: Any) -> int:
        raise NotImplementedError("there is no cache here: ask the engine that samples")
