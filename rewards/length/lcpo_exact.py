"""LCPO's reward for keeping to a length exactly (L1-Exact: Aggarwal & Welleck 2025, arXiv 2503.04697, eq. 1).

    R = −α·|n − ℓ|        n is the problem's length budget (`rlcore.length_budget`)

ℓ is the completion's length in tokens, its end token included. Right and wrong completions pay alike: the paper's whole reward
is 1 for a right answer, which is `answer`, plus R. Worked with the paper's α = 0.0003: a completion that is 1000 tokens off, on
either side, is paid −0.3, so a right one 0.7 in all and a wrong one −0.3. Beyond 1/α = 3333 tokens a right answer is worth less
than a wrong one that keeps to its budget; where lengths are of another order than the paper's (n from 100 to 4000), so is α.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import PositiveFloat

from rlcore.length_budget import budget_of
from rlcore.protocols import Reward
from rlcore.types import Group, Score, Scored


class LcpoExact(Reward):
    """`alpha`: α, what a token is worth. Raises UserError for problems without a budget."""

    reads_budget = True
    reads_length = True

    def __init__(self, *, alpha: PositiveFloat = 0.0003) -> None:
        self._alpha = alpha

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group."""
        return [
            self._score(len(completion.token_ids), budget_of(group.problem))
            for group in groups
            for completion in group.completions
        ]

    def _score(self, length: int, budget: int) -> Score:
        return Scored(-self._alpha * abs(budget - length), f"{length} tokens, budget {budget}")
