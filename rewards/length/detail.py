"""Pays for steps, up to so many: what a reader may want who asks for a detailed solution. Of no paper.

    R = min(n, cap) / cap        n is the number of steps (`rewards.steps`)

Worked, with cap = 4: solutions of 1, 3, 4 and 9 steps are paid 0.25, 0.75, 1 and 1; an empty text has no steps, and is paid 0.
Right and wrong completions are paid alike, and a step of one word like one of a page: it counts what stands between separators,
the answer among it. It pulls against the rewards for being short, and against nothing else; alone beside `answer` it teaches
to write steps that nobody needs. `cap` is what bounds that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import PositiveInt

from rewards.steps import Part, split
from rlcore.errors import UserError
from rlcore.protocols import Reward
from rlcore.types import Group, Score, Scored


class Detail(Reward):
    """`cap`: the number of steps from which more pay nothing. `separator`: between steps. `part`: all of a completion has
    steps, or its `answer` after the thoughts. Raises UserError for an empty separator."""

    reads_length = True

    def __init__(self, *, cap: PositiveInt, separator: str = "\n\n", part: Part = "all") -> None:
        if not separator:
            raise UserError("detail: the separator between steps cannot be empty")
        self.separator = separator
        self._cap, self._part = cap, part

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group."""
        return [self._score(completion.text) for group in groups for completion in group.completions]

    def _score(self, text: str) -> Score:
        steps = len(split(text, self.separator, self._part))
        return Scored(min(steps, self._cap) / self._cap, f"{steps} steps")
