"""The efficient-reasoning reward (Arora & Zanette 2025, "Training language models to reason efficiently", arXiv 2502.04463).

With the mean and standard deviation of the lengths of a problem's right completions,

    z_i = (ℓ_i − mean)/std,    0 where std = 0, so also for a single right completion
    R_i = { −σ(z_i)            right; σ is the logistic function
          { 0                  wrong

ℓ is the completion's length in tokens, its end token included; std divides by their number. The paper's whole reward is
1 − α·σ(z_i) for a right completion and 0 for a wrong one: `answer` beside this component, whose `weight` is α, within [0, 1).
However long, a right completion is then worth more than a wrong one, and lengths count only against those of the same problem.

Worked: right completions of 100, 200 and 300 tokens have mean 200 and std 81.65, so z = −1.2247, 0 and 1.2247, and are paid
−0.2271, −0.5 and −0.7729; with α = 0.1 they earn 0.9773, 0.95 and 0.9227 in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from rewards.accuracy import known_accuracy
from rlcore.protocols import Reward
from rlcore.types import Group, Score, Scored


class Efficiency(Reward):
    """Takes no options. Raises UserError in runs that verify nothing."""

    reads_accuracy = True
    reads_length = True
    compares_group = True

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group."""
        return [score for group in groups for score in _compare(group)]


def _compare(group: Group) -> list[Score]:
    accuracy = known_accuracy("efficiency", group)
    lengths = [len(completion.token_ids) for completion in group.completions]
    right = [length for length, a in zip(lengths, accuracy, strict=True) if a == 1]
    return [
        _score(length, fmean(right), pstdev(right)) if a == 1 else Scored(0.0)
        for length, a in zip(lengths, accuracy, strict=True)
    ]


def _score(length: int, mean: float, deviation: float) -> Score:
    z = (length - mean) / deviation if deviation else 0.0
    return Scored(-1 / (1 + math.exp(-z)), f"{length} tokens, right ones {mean:.0f} on average")
