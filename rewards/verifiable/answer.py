"""Whether the final answer is right, by the grader that the problem names (`rlcore.grading`).

    r = 1 (correct) | 0 (wrong)

A grader that failed says so (Invalid). The raw value is the accuracy that filters, batch statistics and pass@k read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from rlcore.grading.extract import ORDER
from rlcore.grading.pool import Grader
from rlcore.protocols import Reward
from rlcore.types import Group, Invalid, Score, Scored, Verdict


class Answer(Reward):
    """`extract`: where an answer is looked for, in this order. `workers`, `deadline_s`: the processes for answers that need
    algebra, and the seconds that each answer may take there. Raises UserError for bad settings and missing graders."""

    verifiable = True

    def __init__(self, *, extract: Sequence[str] = ORDER, workers: PositiveInt = 2, deadline_s: PositiveFloat = 3.0) -> None:
        self._grader = Grader(workers=workers, deadline_s=deadline_s, extract_order=extract)

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group."""
        return [
            _score(verdict)
            for verdict in self._grader.grade([(g.problem, c.text, c.truncated) for g in groups for c in g.completions])
        ]

    def close(self) -> None:
        self._grader.close()


def _score(verdict: Verdict) -> Score:
    if verdict.kind == "invalid":
        return Invalid(verdict.reason)
    return Scored(float(verdict.kind == "correct"), verdict.reason, judged=verdict.answer)
