"""A cluster on paper: the real loop, sampler and request queue over workers and a learner that do nothing but take time.

Talks to `trainers.loop` and `trainers.sampler` (what happens when), `rollout.queue` (who gets which request) and
`rlcore.data.mixture`; `benchmarks/scaling.py` sweeps it. Time is a number that is moved on from one event to the next, so that
a thousand workers take seconds.

A worker with n rows gives each of them a token every round_s(n) seconds, and stands still while it reads what it has to go on
from. Lengths are drawn for each request by its seed from the lengths that are given, whatever its problem: what the queue
expects of a problem is no help here, as it would be where hard problems have long answers.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from rewards.compose import Graded
from rlcore.batch import GradedBatch, TrainingBatch
from rlcore.data.mixture import Mixture
from rlcore.protocols import Bucket, Engine, Manifest, Tokens, WeightUpdate
from rlcore.recipe.schema import RL, Mode
from rlcore.run.metrics import Metrics
from rlcore.types import Completion, FinishReason, Group, Problem, Request, Sampling
from rollout.queue import Queue
from rollout.sync import Reception
from trainers.loop import Parts, train
from trainers.sampler import Sampler

ROUNDING = 1e-6  # rounds: a token that lacks no more is there


@dataclass(frozen=True)
class Prediction:
    """What a run would do. Rates and shares are of its middle half, when it neither fills up nor runs dry; staleness and
    counts are of all steps."""

    seconds: float  # of the whole run
    step_s: float
    tokens_per_s: float  # trained on
    idle: float  # share of the workers' time in which they have no row
    rows: float  # share of the workers' rows that are decoded, averaged over time
    staleness: float  # mean age of the tokens trained on, in weight versions
    oldest: float  # the most that it was
    tokens: int  # trained on
    samples: int  # trained on
    orchestration_s: float  # seconds of a real processor that loop, sampler and queue took


def predict(
    lengths: Sequence[int],
    round_s: Callable[[int], float],
    learn_s: Callable[[int], float],
    sync_s: float,
    workers: int,
    capacity: int,
    mode: Mode,
    steps: int,
    prompts: int,
    samples: int,
    read_s: float = 0.0,
    prompt_tokens: int = 1,
) -> Prediction:
    """A run of `steps` steps of `prompts` problems with `samples` completions each, on workers with `capacity` rows.

    `lengths` are tokens of completions, to be drawn from; `round_s(rows)` are the seconds in which a worker samples a token for
    each of its rows, `learn_s(tokens)` those of a step's grading and learning, `sync_s` those of handing over weights, and
    `read_s` those in which a worker reads a token, of a prompt or of a completion that goes on after it was interrupted.
    Weights are handed over before the first step too.
    """
    engine = SimulatedEngine(lengths, round_s, sync_s, read_s, workers, capacity)
    data = dict(name="chain", count=2 * prompts + 64)
    rollout = dict(prompts_per_step=prompts, samples=samples, max_new_tokens=max(lengths))
    cluster = dict(workers=workers, mode=mode)
    recipe = RL.model_validate(dict(model="simulated", steps=steps, data=data, rollout=rollout, cluster=cluster))
    rewards: Any = _Rewards(engine)
    learner: Any = _Learner(engine, rewards, learn_s)
    prompter: Any = _Prompter(prompt_tokens)
    sampler = _Sampler(recipe, Mixture(recipe.data, recipe.seed), prompter, engine, rewards)
    run: Any = _Run(engine, rewards, steps)
    began = time.thread_time()
    train(Parts(sampler, engine, rewards, lambda graded: (_UNSEEN, {}), learner, recipe.dtype), run)
    return run.prediction(orchestration_s=time.thread_time() - began - engine.simulated_s, samples=steps * prompts * samples)


# -- workers -------------------------------------------------------------------------------------------------------------


class _Worker:
    """Rows in step: each gets a token in every round. Requests beyond `capacity` wait for a row that ends."""

    def __init__(self, number: int, capacity: int, round_s: Callable[[int], float], read_s: float) -> None:
        self.number, self.capacity, self.round_s, self.read_s = number, capacity, round_s, read_s
        self.changes = 0  # how often its next end was foretold anew
        self.busy_s = self.rows_s = 0.0  # time with a row; the same times the rows
        self._waiting: deque[tuple[Request, int]] = deque()  # with the tokens that are still to come
        self._rows: list[tuple[float, int, Request, int]] = []  # a heap: ends in round, order, request, tokens to come in all
        self._order = itertools.count()
        self._rounds = 0.0  # done until `_since`
        self._since = 0.0
        self._reads_until = 0.0

    @property
    def load(self) -> int:
        return len(self._rows) + len(self._waiting)

    def take(self, now: float, asked: Sequence[tuple[Request, int]]) -> None:
        self._go_on(now)
        self._waiting.extend(asked)
        self._fill()

    def next_end(self) -> float:
        """When its next rows end; infinity where it has none."""
        if not self._rows:
            return math.inf
        rounds = self._rows[0][0] - self._rounds
        return max(self._since, self._reads_until) + rounds * self.round_s(len(self._rows))

    def ended(self, now: float) -> list[tuple[Request, int]]:
        """The requests that end now, at `next_end`, with the tokens sampled for them."""
        self._go_on(now)
        self._rounds = self._rows[0][0]  # what rounding has left of it
        done = []
        while self._rows and self._rows[0][0] <= self._rounds:
            _, _, request, tokens = heapq.heappop(self._rows)
            done.append((request, tokens))
        self._fill()
        return done

    def stop(self, now: float) -> list[tuple[Request, int]]:
        """Everything under way, with the tokens sampled so far."""
        self._go_on(now)
        stopped = [(request, tokens - math.ceil(end - self._rounds - ROUNDING)) for end, _, request, tokens in self._rows]
        stopped += [(request, 0) for request, _ in self._waiting]
        self._rows.clear()
        self._waiting.clear()
        return stopped

    def _go_on(self, now: float) -> None:
        if self._rows:
            self.busy_s += now - self._since
            self.rows_s += (now - self._since) * len(self._rows)
            self._rounds += max(0.0, now - max(self._since, self._reads_until)) / self.round_s(len(self._rows))
        self._since = now

    def _fill(self) -> None:
        read = 0
        prompt: tuple[int, ...] = ()
        while self._waiting and len(self._rows) < self.capacity:
            request, tokens = self._waiting.popleft()
            heapq.heappush(self._rows, (self._rounds + tokens, next(self._order), request, tokens))
            read += len(request.prefix.token_ids) + (len(request.prompt_ids) if request.prompt_ids != prompt else 0)
            prompt = request.prompt_ids  # of a group that comes together it is read once
        self._reads_until = max(self._reads_until, self._since) + read * self.read_s


def _simulated(method: Callable[..., Any]) -> Callable[..., Any]:
    """Counts the processor's seconds in a method, which no real run would spend, in its object's `simulated_s`."""

    @functools.wraps(method)
    def counted(self: Any, *arguments: Any) -> Any:
        began = time.thread_time()
        try:
            return method(self, *arguments)
        finally:
            self.simulated_s += time.thread_time() - began

    return counted


class SimulatedEngine(Engine):
    """Workers that are fed by the pool's queue; `now` is the time. `poll` moves it on to the next completion, `advance` by so
    many seconds, in which the workers go on; what ends meanwhile comes with the next poll."""

    def __init__(
        self,
        lengths: Sequence[int],
        round_s: Callable[[int], float],
        sync_s: float,
        read_s: float,
        workers: int,
        capacity: int,
    ) -> None:
        self.lengths, self.sync_s = lengths, sync_s
        self.context, self.capacity = 1 << 30, workers * capacity
        self.now = 0.0
        self.simulated_s = 0.0  # processor seconds spent on pretending
        self.workers = [_Worker(number, capacity, round_s, read_s) for number in range(workers)]
        self._queue = Queue(capacity)
        self._room = dict.fromkeys(self.workers)  # those that may have room: a set in a fixed order
        self._ends: list[tuple[float, int, int]] = []  # a heap: when, number of the worker, its `changes` at that time
        self._finished: list[Completion] = []
        self._under_way = 0  # requests that workers have
        self._reception = Reception()

    @property
    def version(self) -> int:
        return self._reception.version

    @property
    def busy(self) -> bool:
        return bool(self._under_way or self._finished or len(self._queue))

    def submit(self, requests: Sequence[Request]) -> None:
        self._queue.add(requests)

    def poll(self) -> list[Completion]:
        self._hand_out()
        if not self._finished:
            self._go_to_next_end()
        finished, self._finished = self._finished, []
        return finished

    @_simulated
    def interrupt(self) -> list[Completion]:
        stopped, self._finished = self._finished, []
        for worker in self.workers:
            stopped += [self._completion(request, n, "interrupted") for request, n in worker.stop(self.now)]
            self._room[worker] = None
        stopped += [self._completion(request, 0, "interrupted") for request in self._queue]
        self._queue.clear()
        self._ends.clear()
        self._under_way = 0
        return stopped

    def advance(self, seconds: float) -> None:
        self._hand_out()
        until = self.now + seconds
        while self._go_to_next_end(until):
            self._hand_out()
        self.now = until

    def logprobs(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[list[float]]:
        return [[0.0] * len(token_ids) for _, token_ids in sequences]

    def begin_sync(self, manifest: Manifest) -> None:
        if self.busy:
            raise RuntimeError("sync while completions are under way: interrupt() first, then submit them with their prefix")
        self._reception.begin(manifest)

    def receive(self, bucket: Bucket) -> None:
        raise NotImplementedError("simulated weights have no tensors")

    def end_sync(self) -> None:
        self.now += self.sync_s
        self._reception.end()

    def checksums(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None:
        self.interrupt()

    @staticmethod
    def cache_bytes(sequences: int, sequence_bytes: int, **options: Any) -> int:
        return 0

    # -- events --------------------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        if len(self._queue):
            self._give(self._queue.hand_out({worker: worker.load for worker in self._room}))

    @_simulated
    def _give(self, handed: Mapping[_Worker, Sequence[Request]]) -> None:
        if len(self._queue):
            self._room.clear()  # that is why something is left
        for worker, requests in handed.items():
            worker.take(self.now, [(r, self._length(r) - len(r.prefix.token_ids)) for r in requests])
            self._under_way += len(requests)
            self._foretell(worker)

    def _go_to_next_end(self, until: float = math.inf) -> bool:
        """False where nothing ends up to `until`."""
        ended = self._next_end(until)
        for completion in ended:
            self._queue.learn(completion)
        self._finished += ended
        return bool(ended)

    @_simulated
    def _next_end(self, until: float) -> list[Completion]:
        """What ends at the next moment, up to `until`, at which rows of a worker do."""
        while self._ends and self._ends[0][0] <= until:
            self.now, number, changes = heapq.heappop(self._ends)
            worker = self.workers[number]
            if changes == worker.changes:  # it was given nothing since
                ended = [self._completion(request, tokens, "stop") for request, tokens in worker.ended(self.now)]
                self._under_way -= len(ended)
                self._room[worker] = None
                self._foretell(worker)
                return ended
        return []

    def _foretell(self, worker: _Worker) -> None:
        worker.changes += 1
        if (at := worker.next_end()) < math.inf:
            heapq.heappush(self._ends, (at, worker.number, worker.changes))

    def _length(self, request: Request) -> int:
        return self.lengths[request.seed % len(self.lengths)]

    def _completion(self, request: Request, tokens: int, reason: FinishReason) -> Completion:
        """As `Request.completed` makes it; equal tuples are one, since a step has more tokens than fit into memory."""
        length = len(request.prefix.token_ids) + tokens
        versions = request.prefix.versions + _repeated(self.version, tokens)
        ones, zeros = _repeated(1, length), _repeated(0.0, length)
        key = (request.problem_id, request.sample, request.seed, request.prompt_ids)
        return Completion(*key, ones, ones, zeros, versions, request.sampling, reason, "")


@functools.lru_cache(maxsize=1 << 14, typed=True)
def _repeated(value: Any, times: int) -> tuple[Any, ...]:
    return (value,) * times


# -- the loop's other parts ----------------------------------------------------------------------------------------------


class _Sampler(Sampler):
    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Nothing to do in the background: time passes in `SimulatedEngine.advance`, and the workers go on in it."""
        yield


class _Prompter:
    """Prompts of one length, another for each problem."""

    def __init__(self, tokens: int) -> None:
        self.rest = (0,) * (tokens - 1)

    def render(self, problem: Problem) -> tuple[int, ...]:
        return (hash(problem.id), *self.rest)


_NOTHING = torch.zeros(0, 0)
# Without completions: there are no log-probs that a sync could be probed with.
_BATCH = GradedBatch([], _NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, torch.zeros(0), Sampling(), torch.zeros(0), {}, None)
_UNSEEN = TrainingBatch(_BATCH, _NOTHING, None)


class _Rewards:
    def __init__(self, engine: SimulatedEngine) -> None:
        self.engine = engine
        self.tokens: list[int] = []  # of each step

    def grade(self, groups: Sequence[Group], verified: None) -> Graded:
        began = time.thread_time()
        self.tokens.append(sum(sum(c.loss_mask) for group in groups for c in group.completions))
        self.engine.simulated_s += time.thread_time() - began
        return Graded(list(groups), _BATCH, [], {})

    def update(self, graded: Graded) -> Metrics:
        return {}


class _Learner:
    def __init__(self, engine: SimulatedEngine, rewards: _Rewards, learn_s: Callable[[int], float]) -> None:
        self.engine, self.rewards, self.learn_s = engine, rewards, learn_s

    def update(self, batch: TrainingBatch) -> Metrics:
        self.engine.advance(self.learn_s(self.rewards.tokens[-1]))
        return {}

    def weights(self, version: int) -> WeightUpdate:
        return WeightUpdate(Manifest(version, {}), [])


class _Run:
    """Notes when each step ended, and what the workers had done by then."""

    def __init__(self, engine: SimulatedEngine, rewards: _Rewards, steps: int) -> None:
        self.engine, self.rewards, self.steps = engine, rewards, steps
        self.marks: list[tuple[float, float, float]] = []  # by step: time, worker seconds with a row, row seconds
        self.ages: list[tuple[float, float]] = []  # by step: mean and highest staleness
        self.rolled_back = 0
        self.seconds: Mapping[str, float] = {}

    def restore(self) -> int:
        return 0

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        yield

    def goes_on(self, step: int) -> bool:
        return step < self.steps

    def timed(self, phase: str) -> AbstractContextManager[None]:
        return nullcontext()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if len(self.marks) > step:
            return  # the evaluation's turn
        workers = self.engine.workers
        self.marks.append((self.engine.now, sum(w.busy_s for w in workers), sum(w.rows_s for w in workers)))
        self.ages.append((metrics.get("staleness/mean", 0.0), metrics.get("staleness/max", 0.0)))

    def ledger(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        assert not rows

    def heed(self, step: int, alarms: Sequence[Any]) -> None:
        """Nothing is sampled in which there could be anything to see."""

    def checkpoint(self, step: int) -> None:
        """A run on paper is not resumed."""

    def prediction(self, orchestration_s: float, samples: int) -> Prediction:
        first, last = self.steps // 4, self.steps - self.steps // 4
        (began, busy, rows), (ended, busy_then, rows_then) = self.marks[first], self.marks[last]
        seconds, engine = ended - began, self.engine
        means, oldest = zip(*self.ages[1:], strict=True)
        return Prediction(
            seconds=engine.now,
            step_s=seconds / (last - first),
            tokens_per_s=sum(self.rewards.tokens[first:last]) / seconds,
            idle=1 - (busy_then - busy) / (len(engine.workers) * seconds),
            rows=(rows_then - rows) / (engine.capacity * seconds),
            staleness=sum(means) / self.steps,
            oldest=max(oldest),
            tokens=sum(self.rewards.tokens),
            samples=samples,
            orchestration_s=orchestration_s,
        )
