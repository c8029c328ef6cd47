"""Grades completions: extracts the answers, decides what is easy at once and has `workers` decide the rest.

Serves the reward `answer` and evaluation. `wrong` is the policy's doing, `invalid` the grader's: no policy escapes a penalty by
breaking the grader, and a broken grader never looks like a 0.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from typing import Self

from rlcore.errors import UserError, nearest
from rlcore.grading.equal import normalise
from rlcore.grading.extract import FINDERS, ORDER, PLACES, extract
from rlcore.grading.graders import at_once
from rlcore.grading.workers import Workers
from rlcore.types import NO_ANSWER, TRUNCATED, Problem, Verdict

GRADER_VERSION = f"3+math-verify-{version('math-verify')}"  # the first number goes up whenever a verdict may change


class Grader:
    """Verdicts for completions, from any thread. Worker processes start with the first answer that needs one.

    `deadline_s` (seconds) and `memory_mb` bound one answer; real ones take milliseconds, at most 0.15 s, the rest is for busy
    machines. An answer that breaks a limit or raises is tried once more, on a fresh process. If it fails again, the gold answer
    is graded against itself: where that works, the answer is wrong(ungradable); where it does not, the verdict is invalid.
    `counts` counts the verdicts given, by reason, and `failures` the first tries that gave none, by the exception's name:
    TimeoutError for the deadline.
    """

    def __init__(
        self, *, workers: int = 2, deadline_s: float = 3.0, memory_mb: int = 2048, extract_order: Sequence[str] = ORDER
    ) -> None:
        for setting, value in {"workers": workers, "deadline_s": deadline_s, "memory_mb": memory_mb}.items():
            if value <= 0:
                raise UserError(f"grading: {setting} must be positive, not {value}")
        for name in extract_order:
            if name not in FINDERS:
                raise UserError(f"grading: there is no {name!r} to extract answers from{nearest(name, list(FINDERS))}")
        self.extract_order = tuple(extract_order)
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._limits = workers, deadline_s, memory_mb
        self._workers = Workers(*self._limits)
        self._lock = threading.Lock()

    def grade(self, completions: Sequence[tuple[Problem, str, bool]]) -> list[Verdict]:
        """A verdict for each (problem, text, whether the token limit cut it off), in order.

        Raises UserError for a grader that does not exist, or whose package is not installed.
        """
        verdicts: dict[int, Verdict] = {}
        answers = [self._answer(*completion) for completion in completions]
        hard: dict[tuple[int, str], list[int]] = {}  # samples of a group often agree: one answer to one problem is one task
        for place, ((problem, _, truncated), answer) in enumerate(zip(completions, answers, strict=True)):
            if answer is None:
                verdicts[place] = Verdict("wrong", TRUNCATED if truncated else NO_ANSWER)
            elif verdict := at_once(answer, problem):
                verdicts[place] = verdict
            else:
                hard.setdefault((id(problem), answer), []).append(place)
        tasks = [(answer, completions[places[0]][0]) for (_, answer), places in hard.items()]
        for places, verdict in zip(hard.values(), self._judge(tasks), strict=True):
            verdicts |= dict.fromkeys(places, verdict)
        self._count(verdicts.values())
        return [
            replace(verdicts[place], answer=verdicts[place].answer or normalise(answer or ""))
            for place, answer in enumerate(answers)
        ]

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, problem: Problem, text: str, truncated: bool) -> str | None:
        """The last number of a text that was cut off is where the cut fell, and no answer; neither is one without the unit
        behind it, where that counts."""
        bare = truncated or problem.grader == "quantity"
        order = PLACES.get(problem.grader, self.extract_order)
        return extract(text, [name for name in order if not (bare and name == "last_number")])

    def _judge(self, tasks: Sequence[tuple[str, Problem]]) -> list[Verdict]:
        outcomes = self._workers.run(tasks) if tasks else []
        failed = [task for task, outcome in zip(tasks, outcomes, strict=True) if not isinstance(outcome, Verdict)]
        with self._lock:
            self.failures.update(type(outcome).__name__ for outcome in outcomes if not isinstance(outcome, Verdict))
        second = iter(self._second_opinions(failed) if failed else [])
        return [outcome if isinstance(outcome, Verdict) else next(second) for outcome in outcomes]

    def _second_opinions(self, tasks: Sequence[tuple[str, Problem]]) -> list[Verdict]:
        problems = {id(problem): problem for _, problem in tasks}
        with closing(Workers(*self._limits, single_use=True)) as fresh:
            outcomes = fresh.run([*tasks, *((problem.answer, problem) for problem in problems.values())])
        on_gold = dict(zip(problems, outcomes[len(tasks) :], strict=True))
        return [
            outcome if isinstance(outcome, Verdict) else _blame(problem, outcome, on_gold[id(problem)])
            for (_, problem), outcome in zip(tasks, outcomes, strict=False)
        ]

    def _count(self, verdicts: Iterable[Verdict]) -> None:
        with self._lock:
            self.counts.update(verdict.reason.partition(":")[0] or verdict.kind for verdict in verdicts)


def _blame(problem: Problem, failure: BaseException, on_gold: Verdict | BaseException) -> Verdict:
    """Whose failure it is: the answer's if the grader still knows the gold answer, else the grader's.

    Where a problem names no answer (some gym tasks), that the grader returns at all must do.
    """
    if isinstance(failure, UserError):
        raise failure
    alive = isinstance(on_gold, Verdict) and (on_gold.kind == "correct" or (on_gold.kind == "wrong" and not problem.answer))
    if alive:
        return Verdict("wrong", "ungradable")
    return Verdict("invalid", f"grader broken: {type(failure).__name__}: {failure}")
