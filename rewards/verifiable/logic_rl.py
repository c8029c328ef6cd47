"""Logic-RL's pay for form and answer together (Xie et al. 2025, arXiv 2502.14768), which Short-RL (arXiv 2505.12284) uses too.

           {  format + right        1 + 2   =  3     the four tags once and in order, the answer right
    r(y) = {  format + wrong        1 − 1.5 = −0.5   another answer
           {  format + unreadable   1 − 2   = −1     no answer to the puzzle
           { −format + unreadable  −1 − 2   = −3     a tag missing, twice, or out of order

The tags are <think></think><answer></answer>. An answer to a puzzle of knights and knaves gives each of its people one role,
and names no other (`rlcore.grading.roles`); of other problems every answer is one that is not empty, which is Short-RL's pay
for mathematics: (answer, format) = (2, 1), (−1.5, 1) and (−2, −1).

Right is what `answer` says is right. That stands beside this one unpaid, so that accuracy stays 1 or 0, and the run's reward
is r:

    rewards: [{name: answer, weight: 0, extract: [answer_tag], form: think_answer}, logic_rl]

With `form`, accuracy has the tags in it, as that of the papers: without it a right answer with a tag too many, which is paid −3
here, would count as right for all that reads accuracy, Short-RL's length penalty among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.accuracy import known_accuracy
from rewards.verifiable.format import tags_fault
from rlcore.errors import UserError
from rlcore.grading.extract import extract
from rlcore.grading.roles import cast
from rlcore.protocols import Reward
from rlcore.types import Group, Problem, Score, Scored


class LogicRl(Reward):
    """`format`: paid for the form, and taken off without it. `right`, `wrong`, `unreadable`: paid for the answer beside that.

    Raises UserError in runs that verify nothing, and where these do not fall in this order."""

    reads_accuracy = True

    def __init__(self, *, format: float = 1.0, right: float = 2.0, wrong: float = -1.5, unreadable: float = -2.0) -> None:
        if not right > wrong >= unreadable:
            raise UserError(f"logic_rl: not right > wrong >= unreadable: {right:g}, {wrong:g}, {unreadable:g}")
        self._format, self._right, self._wrong, self._unreadable = format, right, wrong, unreadable

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group."""
        return [
            self._score(group.problem, completion.text, accuracy)
            for group in groups
            for completion, accuracy in zip(group.completions, known_accuracy("logic_rl", group), strict=True)
        ]

    def _score(self, problem: Problem, text: str, accuracy: float) -> Score:
        if fault := tags_fault(text, "answer"):
            return Scored(-self._format + self._unreadable, fault)
        if accuracy == 1:
            return Scored(self._format + self._right)
        if not _is_answer(extract(text, ["answer_tag"]) or "", problem):
            return Scored(self._format + self._unreadable, "no answer to the problem")
        return Scored(self._format + self._wrong, "wrong answer")


def _is_answer(answer: str, problem: Problem) -> bool:
    return cast(answer, problem.answer) is not None if problem.grader == "roles" else bool(answer)
