"""The triangular length reward of Train Long, Think Short (Hammoud et al. 2025, arXiv 2508.08940).

    R = max(0, 1 − |ℓ − L|/L)        L is the problem's length budget (`rlcore.length_budget`)

It rises to 1 at the budget, falls as fast beyond, and is 0 from 2L on. ℓ is the completion's length in tokens, its end token
included. Right and wrong completions are paid alike. Worked, L = 100: lengths of 50, 100, 150 and 200 give 0.5, 1, 0.5 and 0.

The paper adds it to rewards for the answer and the format, with λ for each, which are the components' weights: 0.3 for answers
and 0.6 for lengths, or the other way round. With the first a wrong completion that keeps to its budget earns more than a right
one that is far from it. The budget shrinks as training goes on: `length_budget.decay`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlcore.length_budget import budget_of
from rlcore.protocols import Reward
from rlcore.types import Group, Score, Scored


class Triangle(Reward):
    """Takes no options. Raises UserError for problems without a budget."""

    reads_budget = True
    reads_length = True

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group."""
        return [
            _score(len(completion.token_ids), budget_of(group.problem)) for group in groups for completion in group.completions
        ]


def _score(length: int, budget: int) -> Score:
    return Scored(max(0.0, 1 - abs(length - budget) / budget), f"{length} tokens, budget {budget}")
