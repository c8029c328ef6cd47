"""Many judges as one: reward models in processes of their own, which Ray starts anywhere in the cluster.

What is asked is divided by solutions, so that texts of which one is the beginning of another go to one process and are read
once; what is asked twice is judged once. The parts hold about as much text each and like lengths together; the longest come
first, and whoever is free takes the next. A judge that dies, or says nothing for `deadline_s` seconds, is replaced, and judges
its part again: what is judged together changes no score, so the scores come out the same.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, TypeVar

from rewards.judge import Judge, Judgement
from rewards.judged_text import Asked, packed
from rlcore.errors import UserError
from rlcore.protocols import Progress, no_progress
from rlcore.remote import START_S, answers, kill
from rlcore.run.console import warn

T = TypeVar("T")
PARTS = 4  # for each process, so that none waits long for the others at the end


class Judges(Judge):
    """`make` is called in each of `workers` processes with `gpus` GPUs and `environment`. Raises what it raises; UserError once
    more than `max_restarts` of the processes were lost."""

    def __init__(
        self,
        make: Callable[[], Judge],
        *,
        workers: int,
        gpus: float = 0,
        environment: Mapping[str, str] | None = None,
        deadline_s: float = 600.0,
        max_restarts: int = 5,
    ) -> None:
        self.make, self.gpus, self.environment = make, gpus, dict(environment or {})
        self.deadline_s, self.restarts, self.max_restarts = deadline_s, 0, max_restarts
        self._replacing = threading.Lock()
        self._actors = [self._start() for _ in range(workers)]
        loading = {number: actor.load.remote(make) for number, actor in enumerate(self._actors)}
        loaded = [self._answer(number, "load", make, call) for number, call in loading.items()]
        self.of_solutions, self.steps_end_with = loaded[0]

    def log_odds(self, asked: Sequence[Asked], progress: Progress = no_progress) -> list[float | None]:
        return self.judge(asked, progress).log_odds

    def judge(self, asked: Sequence[Asked], progress: Progress = no_progress) -> Judgement:
        """As one judge in this process would."""
        repeated = Counter(asked)
        questions = list(repeated)
        idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(len(self._actors)):
            idle.put(number)

        def judged(part: Sequence[int]) -> Judgement:
            number = idle.get()
            try:
                found: Judgement = self._answer(number, "judge", [questions[i] for i in part])
            finally:
                idle.put(number)
            progress(sum(repeated[questions[i]] for i in part))
            return found

        parts = list(divided(questions, PARTS * len(self._actors)))
        with ThreadPoolExecutor(len(self._actors)) as threads:
            found = list(threads.map(judged, parts))
        place = {questions[i]: at for at, i in enumerate(chain.from_iterable(parts))}
        return _together(found, [place[question] for question in asked])

    def close(self) -> None:
        kill(self._actors)
        self._actors = []

    def _start(self) -> Any:
        import ray

        return ray.remote(Worker).options(num_cpus=0, num_gpus=self.gpus, runtime_env={"env_vars": self.environment}).remote()

    def _answer(self, number: int, method: str, argument: Any, call: Any = None) -> Any:
        """What the actor of this number says, or the one that replaces it. `call` is under way already."""
        while True:
            call = call or getattr(self._actors[number], method).remote(argument)
            found = answers({number: call}, START_S if method == "load" else self.deadline_s, together=False)
            for error in found.raised.values():
                raise error
            if number in found.got:
                return found.got[number]
            self._replace(number, found.lost[number])
            call = None
            if method != "load":
                self._answer(number, "load", self.make)

    def _replace(self, number: int, why: str) -> None:
        with self._replacing:
            self.restarts += 1
            if self.restarts > self.max_restarts:
                raise UserError(f"judge {number} {why}; {self.max_restarts} were replaced before it, and no more will be")
            warn(f"judge {number} {why}; replaced (replacement {self.restarts} of {self.max_restarts})")
            kill([self._actors[number]])
            self._actors[number] = self._start()


class Worker:
    """One of the processes."""

    def load(self, make: Callable[[], Judge]) -> tuple[bool, str | None]:
        """What `Judge` says of whole solutions and of steps."""
        self._judge = make()
        self._judge.load()
        return self._judge.of_solutions, self._judge.steps_end_with

    def judge(self, asked: Sequence[Asked]) -> Judgement:
        return self._judge.judge(asked)


def divided(asked: Sequence[Asked], parts: int) -> Iterator[list[int]]:
    """The numbers of what is asked in so many parts, or fewer, of about as many characters, as there are tokenizers of many
    kinds: the longest texts first, and what one text answers never apart."""
    texts = [(sum(map(len, (problem, *steps))), list(ends.values())) for problem, steps, ends in packed(asked)]
    texts.sort(key=lambda text: -text[0])
    most = sum(length for length, _ in texts) / parts
    part: list[int] = []
    size = 0
    for length, numbers in texts:
        part += numbers
        size += length
        if size >= most:
            yield part
            part, size = [], 0
    if part:
        yield part


def _together(found: Sequence[Judgement], order: Sequence[int]) -> Judgement:
    """One after the other, and of them those of these places."""

    def ordered(values: Iterable[list[T]]) -> list[T]:
        every = list(chain.from_iterable(values))
        return [every[at] for at in order]

    names = found[0].measured if found else ()
    measured = {name: ordered(each.measured[name] for each in found) for name in names}
    return Judgement(ordered(each.log_odds for each in found), measured)
