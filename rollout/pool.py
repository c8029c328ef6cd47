"""Many engines as one: rollout workers in processes of their own, which Ray starts anywhere in the cluster.

Requests wait in one queue and are handed to whichever worker has the least to do, the longest first, so that no worker idles
while another has a backlog. A worker that dies, or does nothing for `deadline_s` seconds, is replaced: its requests go back
into the queue (their seeds decide their tokens, so they come out the same), and its successor gets the current weights before
any work.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from rlcore.errors import UserError
from rlcore.protocols import Bucket, Engine, Manifest, Superseded, Tokens, WeightUpdate
from rlcore.remote import START_S, answers, kill
from rlcore.run.console import warn
from rlcore.run.metrics import Metrics, merge
from rlcore.types import Completion, Request
from rollout.admission import refuse_unfit
from rollout.queue import Queue
from rollout.sync import TOLERANCE, Reception, SyncError
from rollout.transport import BroadcastUpdate, Sender
from rollout.worker import Worker, to_wire

WAIT_S = 1.0  # how long a worker's call waits for completions before it says that the engine is alive
LISTEN_S = 0.1  # how long a poll waits for any worker's
BUCKETS_UNDER_WAY = 2

Key = tuple[str, int, int]
"""What names a request: problem id, sample, seed."""


@dataclass(eq=False)
class _Member:
    """A worker as the driver knows it."""

    number: int
    actor: Any
    waiting: Any  # the call that is awaited: to be ready, then to `collect`; None where there is nothing to wait for
    state: Literal["starting", "without weights", "serving"] = "starting"
    outstanding: dict[Key, Request] = field(default_factory=dict)
    last: Any = None  # the last of the calls whose order matters: each takes the result of the one before
    rounds: int = 0
    heard: float = field(default_factory=time.monotonic)  # when it was last known to get on


class Pool(Engine):
    """`make` is called in each of `workers` processes with `gpus` GPUs and `environment`. Raises UserError where they cannot be
    started, and once more than `max_restarts` of them have died."""

    def __init__(
        self,
        make: Callable[[], Engine],
        tokenizer: PreTrainedTokenizerBase,
        *,
        workers: int,
        dtype: str,
        gpus: float = 0,
        environment: dict[str, str] | None = None,
        deadline_s: float = 600.0,
        max_restarts: int = 5,
    ) -> None:
        self.make, self.tokenizer, self.dtype = make, tokenizer, dtype
        self.gpus, self.environment, self.deadline_s = gpus, environment or {}, deadline_s
        self.restarts, self.max_restarts = 0, max_restarts
        self._reception = Reception()
        self._update: WeightUpdate | None = None  # what is served, to be streamed again to those who come later
        self._proofs: dict[str, tuple[tuple[Any, ...], Any]] = {}  # what workers were asked about it last, and answered
        self._queue = Queue(room=0)
        self._under_way: deque[dict[_Member, Any]] = deque()  # buckets sent and not yet acknowledged
        self._met: tuple[Sender, list[_Member]] | None = None  # who are in one group for broadcasts
        self._members = [self._start(number) for number in range(workers)]
        about: dict[_Member, dict[str, int]] = {}
        while len(about) < workers:
            about |= self._settle({m: m.waiting for m in self._members if m not in about}, START_S)
        self.context = min(each["context"] for each in about.values())
        room = min(each["capacity"] for each in about.values())
        self._queue.room = room
        self.capacity = room * workers
        for member in self._members:
            member.state, member.waiting = "serving", None

    @property
    def version(self) -> int:
        return self._reception.version

    @property
    def busy(self) -> bool:
        return len(self._queue) > 0 or any(member.outstanding for member in self._members)

    # -- completions -----------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> None:
        self._reception.refuse_torn()
        refuse_unfit(requests, self.context)
        self._queue.add(requests)

    def poll(self) -> list[Completion]:
        self._hand_out()
        return self._hear()

    def interrupt(self) -> list[Completion]:
        """As every engine's; a completion that ended while the interruption was on its way is among them, whole."""
        self._settle({member: member.actor.interrupt.remote(member.last) for member in self._serving()})
        stopped: list[Completion] = []
        while any(member.outstanding for member in self._members):
            stopped += self._hear()
        return stopped + self._unbegun()

    def logprobs(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[list[float]]:
        """Of one worker. All are asked: raises SyncError where one serves something else than another."""
        self._reception.refuse_torn()
        rows: list[list[float]] = self._agreed("logprobs", sequences)
        return rows

    # -- weights ---------------------------------------------------------------------------------------------------------

    def sync(self, update: WeightUpdate) -> dict[str, int]:
        if self.busy:
            raise RuntimeError("sync while completions are under way: interrupt() first, then submit them with their prefix")
        self._update, self._proofs = update, {}
        if not isinstance(update, BroadcastUpdate):
            return super().sync(update)
        try:
            return self._sync_by_broadcast(update)
        except _Lost:
            return super().sync(update)

    def _sync_by_broadcast(self, update: BroadcastUpdate) -> dict[str, int]:
        """`rollout.transport` says how. Raises _Lost where a worker died meanwhile."""
        members = self._started()
        if self._met != (update.sender, members):
            groups, opening = update.sender.open(len(members))
            self._settle({member: member.actor.join.remote(group) for member, group in zip(members, groups, strict=True)})
            opening()
            self._met = update.sender, members
        sent: dict[str, int] = {}
        self.begin_sync(update.manifest)
        for bucket in update.announced:
            if self._started() != members:  # no broadcast can end without one of them
                raise _Lost
            calls = self._send(bucket, members)
            sending = update.sender.send()
            self._settle(calls)
            sending()
            sent |= bucket.checksums
        self.end_sync()
        return sent

    def begin_sync(self, manifest: Manifest) -> None:
        self._under_way.clear()
        for member in self._members:
            member.last = None  # it fails whatever comes after it, if an update before this one failed
        self._call_all("begin_sync", manifest, members=self._started())
        self._reception.begin(manifest)

    def receive(self, bucket: Bucket) -> None:
        """Pass the bucket on. The next may come while this one is under way, and the one after that only when it has
        arrived."""
        self._reception.expected(bucket)
        self._under_way.append(self._send(bucket, self._started()))
        if len(self._under_way) == BUCKETS_UNDER_WAY:
            self._settle(self._under_way.popleft())

    def end_sync(self) -> None:
        while self._under_way:
            self._settle(self._under_way.popleft())
        for member in self._call_all("end_sync", members=self._started()):
            member.state = "serving"
        self._reception.end()

    def checksums(self) -> dict[str, int]:
        return dict(self._agreed("checksums"))

    def metrics(self) -> Metrics:
        return merge(self._call_all("metrics", members=self._serving()).values())

    def close(self) -> None:
        kill([member.actor for member in self._members])
        self._members.clear()
        self._queue.clear()

    @staticmethod
    def cache_bytes(sequences: int, sequence_bytes: int, **options: Any) -> int:
        raise NotImplementedError("a pool has no cache of its own: ask the engine that its workers run")

    # -- handing out -----------------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        if not self._queue:
            return
        for member, requests in self._queue.hand_out({m: len(m.outstanding) for m in self._serving()}).items():
            member.outstanding |= {(r.problem_id, r.sample, r.seed): r for r in requests}
            member.last = member.actor.submit.remote(requests, member.last)
            if member.waiting is None:
                member.heard = time.monotonic()
                member.waiting = member.actor.collect.remote(WAIT_S)

    def _hear(self) -> list[Completion]:
        """Wait for a worker to say something, and return what has finished; where all wait for weights, what none of them has
        begun."""
        import ray

        calls = {member.waiting: member for member in self._members if member.waiting is not None}
        if not calls:
            return self._unbegun()
        ready, _ = ray.wait(list(calls), num_returns=1, timeout=LISTEN_S)
        more, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        finished: list[Completion] = []
        for ref in {*ready, *more}:
            finished += self._answer(calls[ref])
        for member in calls.values():
            patience = START_S if member.state == "starting" else self.deadline_s
            if member in self._members and time.monotonic() - member.heard > patience:
                self._replace(member, f"did nothing for {patience:g} s")
        return finished

    def _unbegun(self) -> list[Completion]:
        """Empty the queue: its requests as interrupted completions."""
        stopped = [
            request.completed(
                (), (), self.version, "interrupted", self.tokenizer.decode(request.prefix.token_ids, skip_special_tokens=True)
            )
            for request in self._queue
        ]
        self._queue.clear()
        return stopped

    def _answer(self, member: _Member) -> list[Completion]:
        """Take in what the call that is awaited has brought."""
        try:
            got = self._settle({member: member.waiting})
        except (OSError, RuntimeError) as error:
            if member.state != "starting":
                raise
            self._replace(member, f"could not start: {error}")  # its predecessor's memory may not be free yet
            return []
        if member not in got:
            return []
        member.waiting = None
        if member.state == "starting":
            self._welcome(member)
            return []
        completions, rounds = got[member]
        if completions or rounds != member.rounds:
            member.rounds, member.heard = rounds, time.monotonic()
        for completion in completions:
            del member.outstanding[completion.problem_id, completion.sample, completion.seed]
            self._queue.learn(completion)
        if member.outstanding:
            member.waiting = member.actor.collect.remote(WAIT_S)
        return completions

    # -- workers that come and go ----------------------------------------------------------------------------------------

    def _start(self, number: int) -> _Member:
        import ray

        options = dict(num_cpus=0, num_gpus=self.gpus, max_concurrency=4, runtime_env={"env_vars": self.environment})
        actor: Any = ray.remote(Worker).options(**options).remote(self.make)
        return _Member(number, actor, waiting=actor.about.remote())

    def _replace(self, member: _Member, why: str) -> None:
        self.restarts += 1
        if self.restarts > self.max_restarts:
            raise UserError(
                f"rollout worker {member.number} {why}; {self.max_restarts} were replaced before it, and no more will be"
            )
        warn(f"rollout worker {member.number} {why}; replaced (replacement {self.restarts} of {self.max_restarts})")
        kill([member.actor])
        self._queue.put_back(member.outstanding.values())
        self._members[self._members.index(member)] = self._start(member.number)

    def _welcome(self, member: _Member) -> None:
        """Give a worker that replaces another the weights that are served, and have it prove them. Where the learner is at its
        next update already, the worker waits for the sync that follows."""
        member.state, member.heard = "without weights", time.monotonic()
        try:
            if self._update is not None:
                self._ask(member, "begin_sync", self._update.manifest)
                for bucket in self._update.buckets:
                    self._settle(self._send(bucket, [member]))
                self._ask(member, "end_sync")
            for method, (arguments, answer) in self._proofs.items():
                self._refuse_difference(method, member, self._ask(member, method, *arguments), answer)
            member.state = "serving"
        except (_Lost, Superseded):  # a lost one has been replaced
            return

    def _started(self) -> list[_Member]:
        return [member for member in self._members if member.state != "starting"]

    def _serving(self) -> list[_Member]:
        return [member for member in self._members if member.state == "serving"]

    # -- calls -----------------------------------------------------------------------------------------------------------

    def _ask(self, member: _Member, method: str, *arguments: Any) -> Any:
        got = self._settle({member: getattr(member.actor, method).remote(*arguments)})
        if member not in got:
            raise _Lost
        return got[member]

    def _call_all(self, method: str, *arguments: Any, members: Sequence[_Member]) -> dict[_Member, Any]:
        return self._settle({member: getattr(member.actor, method).remote(*arguments) for member in members})

    def _settle(self, calls: dict[_Member, Any], deadline_s: float | None = None) -> dict[_Member, Any]:
        """What the calls bring; the workers that are lost are replaced. Raises what a worker raised."""
        found = answers(calls, deadline_s or self.deadline_s, together=False)
        for error in found.raised.values():
            raise error
        for member, why in found.lost.items():
            if member in self._members:
                self._replace(member, why)
        return found.got

    def _send(self, bucket: Bucket, members: Sequence[_Member]) -> dict[_Member, Any]:
        """Hand a bucket to workers, by way of the object store, where it lies once."""
        import ray

        stored = bucket.tensors if isinstance(bucket.tensors, ray.ObjectRef) else ray.put(to_wire(bucket.tensors))
        for m in members:
            m.last = m.actor.receive.remote(bucket.version, bucket.index, stored, bucket.checksums, m.last)
        return {m: m.last for m in members}

    def _agreed(self, method: str, *arguments: Any) -> Any:
        """What all workers answer alike, and those that come later will have to; waits for one where none is left."""
        got: dict[_Member, Any] = {}
        while not got:
            while not self._serving():
                self._hear()
            got = self._call_all(method, *arguments, members=self._serving())
        (_, first), *others = sorted(got.items(), key=lambda answered: answered[0].number)  # they come in any order
        for member, answer in others:
            self._refuse_difference(method, member, answer, first)
        self._proofs[method] = arguments, first
        return first

    def _refuse_difference(self, method: str, member: _Member, answer: Any, first: Any) -> None:
        if method == "logprobs":
            ours, theirs = (torch.tensor([value for row in rows for value in row]) for rows in (first, answer))
            same = not len(ours) or (ours - theirs).abs().mean().item() <= TOLERANCE[self.dtype]
        else:
            same = answer == first
        if not same:
            raise SyncError(f"rollout worker {member.number} does not serve what the others serve: its {method} differ")


class _Lost(Exception):
    """The worker that was asked died or hangs, and has been replaced."""
