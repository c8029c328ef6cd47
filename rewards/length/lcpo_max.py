"""LCPO's reward for keeping below a length (L1-Max: Aggarwal & Welleck 2025, arXiv 2503.04697, eq. 2).

    R = { clip(α·(n − ℓ) + δ, 0, 1) − 1        right; n is the problem's length budget (`rlcore.length_budget`)
        { 0                                    wrong

ℓ is the completion's length in tokens, its end token included. The paper's whole reward is the clip for right completions and 0
for wrong ones. Beside `answer`, which pays the right ones 1, it is what both add up to, with weight 1 each.

Worked with the paper's α = 0.0003, δ = 0.5 and n = 2000: right completions of 200, 1000, 2000, 3000 and 4000 tokens are paid 0,
−0.2, −0.5, −0.8 and −1; with `answer` 1, 0.8, 0.5, 0.2 and 0. The budget is soft: a right answer that just meets it earns δ in
all, 1 from (1 − δ)/α = 1667 tokens below it, and nothing from δ/α beyond. Where lengths are of another order, so is α.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import PositiveFloat

from rewards.accuracy import known_accuracy
from rlcore.length_budget import budget_of
from rlcore.protocols import Reward
from rlcore.recipe.schema import Share
from rlcore.types import Group, Score, Scored


class LcpoMax(Reward):
    """`alpha`: α, what a token is worth; `delta`: δ. Raises UserError for problems without a budget, and in runs that verify
    nothing."""

    reads_accuracy = True
    reads_budget = True
    reads_length = True

    def __init__(self, *, alpha: PositiveFloat = 0.0003, delta: Share = 0.5) -> None:
        self._alpha, self._delta = alpha, delta

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group."""
        return [
            self._score(len(completion.token_ids), budget_of(group.problem)) if right == 1 else Scored(0.0)
            for group in groups
            for completion, right in zip(group.completions, known_accuracy("lcpo_max", group), strict=True)
        ]

    def _score(self, length: int, budget: int) -> Score:
        earned = self._alpha * (budget - length) + self._delta
        return Scored(min(max(earned, 0.0), 1.0) - 1.0, f"{length} tokens, budget {budget}")
