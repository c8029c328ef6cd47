"""A rollout worker: one engine in a process of its own. `rollout.pool` holds the other end.

The engine works in a thread that does nothing else and stops for nothing but the commands that come between two rounds, so
that it never waits for the driver as long as it has requests.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from rlcore.protocols import Bucket, Engine, Manifest, Tokens
from rlcore.run.metrics import Metrics
from rlcore.types import Completion, Request
from rollout.transport import Receiver

Result = TypeVar("Result")
# Name → bytes (None: they come another way), dtype, shape: what object stores pass on without a copy.
Wire = dict[str, tuple[np.ndarray | None, str, tuple[int, ...]]]


class Worker:
    """Made as a Ray actor whose methods run concurrently. Ray may exchange calls that are made one after the other: where the
    order matters, a call takes the result of the one before as `after`."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._commands: queue.SimpleQueue[tuple[Callable[[Engine], Any], Future]] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        self._rounds = 0
        self._failure: BaseException | None = None
        self._made: Future[dict[str, int]] = Future()
        threading.Thread(target=self._work, args=(make,), daemon=True).start()

    def about(self) -> dict[str, int]:
        """The engine's `context` and `capacity`, when it is made. Raises what making it raised."""
        return self._made.result()

    # -- completions -----------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], after: None) -> None:
        """What the engine raises, `collect` raises too."""
        try:
            self._do(lambda engine: engine.submit(requests))
        except BaseException as error:
            self._failure = error
            raise

    def collect(self, wait_s: float) -> tuple[list[Completion], int]:
        """What has finished since the last call, waiting for something so long at most; and how many rounds the engine has
        done: where that stands still, it hangs. Raises what the engine raised."""
        completions: list[Completion] = []
        try:
            completions.append(self._finished.get(timeout=wait_s))
            while True:
                completions.append(self._finished.get_nowait())
        except queue.Empty:
            if self._failure is not None and not completions:
                raise self._failure from None
        return completions, self._rounds

    def interrupt(self, after: None) -> None:
        """Stop everything that `after` and the calls before it submitted; what was sampled so far comes out of `collect`."""

        def stop(engine: Engine) -> None:
            for completion in engine.interrupt():
                self._finished.put(completion)

        self._do(stop)

    def logprobs(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[list[float]]:
        return self._do(lambda engine: engine.logprobs(sequences))

    # -- weights ---------------------------------------------------------------------------------------------------------

    def join(self, group: Mapping[str, Any]) -> None:
        self._do(lambda engine: cast(Receiver, engine).join(group))

    def begin_sync(self, manifest: Manifest) -> None:
        self._do(lambda engine: engine.begin_sync(manifest))

    def receive(self, version: int, index: int, tensors: Wire, checksums: Mapping[str, int], after: None) -> None:
        self._do(lambda engine: engine.receive(Bucket(version, index, from_wire(tensors), checksums)))

    def end_sync(self) -> None:
        self._do(lambda engine: engine.end_sync())

    def checksums(self) -> Mapping[str, int]:
        return self._do(lambda engine: engine.checksums())

    def metrics(self) -> Metrics:
        return self._do(lambda engine: engine.metrics())

    # -- the engine's thread ---------------------------------------------------------------------------------------------

    def _do(self, action: Callable[[Engine], Result]) -> Result:
        """Have the engine's thread do it between two rounds."""
        done: Future[Result] = Future()
        self._commands.put((action, done))
        return done.result()

    def _work(self, make: Callable[[], Engine]) -> None:
        try:
            engine = make()
        except BaseException as error:  # raised again by `about`
            self._made.set_exception(error)
            return
        self._made.set_result({"context": engine.context, "capacity": engine.capacity})
        while True:
            try:
                action, done = self._commands.get(block=not engine.busy or self._failure is not None)
            except queue.Empty:
                self._round(engine)
                continue
            try:
                done.set_result(action(engine))
            except BaseException as error:  # raised again where the command came from
                done.set_exception(error)

    def _round(self, engine: Engine) -> None:
        try:
            for completion in engine.poll():
                self._finished.put(completion)
        except BaseException as error:  # raised again by `collect`
            self._failure = error
        self._rounds += 1


def to_wire(tensors: Mapping[str, Tensor]) -> Wire:
    """Copies nothing that is on the CPU and contiguous already."""
    return {
        name: (
            None if t.is_meta else t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(),
            str(t.dtype).removeprefix("torch."),
            tuple(t.shape),
        )
        for name, t in tensors.items()
    }


def from_wire(tensors: Wire) -> dict[str, Tensor]:
    """Views of the bytes that came, which are not to be written to."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch says that it cannot protect them
        return {
            name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            if data is None
            else torch.from_numpy(data).view(getattr(torch, dtype)).view(shape)
            for name, (data, dtype, shape) in tensors.items()
        }
