"""How much of the answer is right, by graders that know more than right and wrong: Reasoning Gym's tasks, tool calls.

    r = low + (high − low) · credit,   credit ∈ [0, 1]

It stands beside `answer`, whose raw value stays the accuracy, and is 0 for all but a right answer: `{name: answer, weight: 0}`
pays for the credit alone. Where a grader knows right and wrong only, the credit is 1 or 0; without an answer, it is 0.

ToolRL (Qian et al. 2025, arXiv 2504.13958) pays tool calls from −3 to 3, and 1 for their form:

    rewards: [{name: answer, weight: 0}, {name: partial_credit, low: -3, high: 3}, {name: format, style: think_tool_call}]

Worked, with the calls of `rlcore.grading.structured`, whose credit is 2.5/6: −3 + 6 · 2.5/6 = −0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from rlcore.errors import UserError
from rlcore.grading.extract import ORDER
from rlcore.grading.pool import Grader
from rlcore.protocols import Reward
from rlcore.types import Group, Invalid, Score, Scored, Verdict


class PartialCredit(Reward):
    """`low`, `high`: what no credit and full credit are paid. The others are those of `answer`, and should be the same. Raises
    UserError for `low` that is not below `high`, and as `answer` does."""

    def __init__(
        self,
        *,
        low: float = 0.0,
        high: float = 1.0,
        extract: Sequence[str] = ORDER,
        workers: PositiveInt = 2,
        deadline_s: PositiveFloat = 3.0,
    ) -> None:
        if low >= high:
            raise UserError(f"partial_credit: low must be below high ({high:g}), not {low:g}")
        self._low, self._high = low, high
        self._grader = Grader(workers=workers, deadline_s=deadline_s, extract_order=extract)

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group."""
        verdicts = self._grader.grade([(g.problem, c.text, c.truncated) for g in groups for c in g.completions])
        return [self._score(verdict) for verdict in verdicts]

    def close(self) -> None:
        self._grader.close()

    def _score(self, verdict: Verdict) -> Score:
        if verdict.kind == "invalid":
            return Invalid(verdict.reason)
        credit = float(verdict.kind == "correct") if verdict.credit is None else verdict.credit
        return Scored(self._low + (self._high - self._low) * credit, verdict.reason, judged=verdict.answer)
