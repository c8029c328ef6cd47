"""Kimi k1.5's length penalty (Kimi Team 2025, arXiv 2501.12599, §2.3.3).

Among the completions of a problem, right and wrong, of lengths ℓ_i between ℓ_min and ℓ_max,

    λ_i = 0.5 − (ℓ_i − ℓ_min)/(ℓ_max − ℓ_min)
    R_i = { λ_i            right
          { min(0, λ_i)    wrong: being short earns it nothing
          { 0              all, where ℓ_max = ℓ_min

ℓ is the completion's length in tokens, its end token included. A completion that could not be judged is compared with nothing.
Worked: lengths 300, 350, 500, 900 (right) and 200 (wrong) give 0.3571, 0.2857, 0.0714, −0.5 and 0.

The paper adds R to the reward for the answer with a weight, which is the component's, and begins without it, as it would hold
back a policy that solves little yet; `short_rl` opens by accuracy instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.accuracy import known_accuracy
from rlcore.protocols import Reward
from rlcore.types import Group, Score, Scored


class Kimi(Reward):
    """Takes no options. Raises UserError in runs that verify nothing."""

    reads_accuracy = True
    reads_length = True
    compares_group = True

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group."""
        return [score for group in groups for score in _compare(group)]


def _compare(group: Group) -> list[Score]:
    accuracy = known_accuracy("kimi", group)
    lengths = [len(completion.token_ids) for completion in group.completions]
    return [_score(length, right, min(lengths), max(lengths)) for length, right in zip(lengths, accuracy, strict=True)]


def _score(length: int, right: float, shortest: int, longest: int) -> Score:
    if longest == shortest:
        return Scored(0.0, f"{length} tokens, as all have")
    value = 0.5 - (length - shortest) / (longest - shortest)
    return Scored(value if right else min(0.0, value), f"{length} tokens, of {shortest} to {longest}")
