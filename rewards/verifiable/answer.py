"""Whether the final answer is right, by the grader that the problem names (`rlcore.grading`).

    r = 1 (correct) | 0 (wrong)

A grader that failed says so (Invalid). The raw value is the accuracy that filters, batch statistics and pass@k read. With a
`form` it counts a right answer in another form as wrong, and so does all that reads accuracy, such as the lengths that a length
reward compares: in Logic-RL and Short-RL no answer is correct outside of the tags that the prompt asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from rewards.verifiable.format import fault_of
from rlcore.grading.extract import ORDER
from rlcore.grading.pool import Grader
from rlcore.protocols import Reward
from rlcore.types import Group, Invalid, Score, Scored, Verdict


class Answer(Reward):
    """`extract`: where an answer is looked for, in this order. `form`: a style of `format` that a right answer must keep to;
    without it any form will do. `workers`, `deadline_s`: the processes for answers that need algebra, and the seconds that each
    answer may take there. Raises UserError for bad settings and missing graders."""

    verifiable = True

    def __init__(
        self,
        *,
        extract: Sequence[str] = ORDER,
        form: str | None = None,
        workers: PositiveInt = 2,
        deadline_s: PositiveFloat = 3.0,
    ) -> None:
        self._fault = (lambda text: "") if form is None else fault_of("answer", form)
        self._grader = Grader(workers=workers, deadline_s=deadline_s, extract_order=extract)

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group."""
        asked = [(g.problem, c.text, c.truncated) for g in groups for c in g.completions]
        verdicts = self._grader.grade(asked)
        return [_score(verdict, self._fault(text)) for verdict, (_, text, _) in zip(verdicts, asked, strict=True)]

    def close(self) -> None:
        self._grader.close()


def _score(verdict: Verdict, fault: str) -> Score:
    if verdict.kind == "invalid":
        return Invalid(verdict.reason)
    if verdict.kind == "correct" and fault:
        return Scored(0.0, f"right, in another form: {fault}", judged=verdict.answer)
    return Scored(float(verdict.kind == "correct"), verdict.reason, judged=verdict.answer)
