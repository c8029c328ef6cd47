"""Accuracy from several samples per problem, with intervals that know the samples of one problem are alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959964  # two-sided 95 %


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float
    high: float


def accuracy(correct: Sequence[Sequence[float]]) -> Estimate:
    """Mean over problems of the share of right samples."""
    return over_problems([sum(row) / len(row) for row in correct], sum(map(len, correct)))


def over_problems(means: Sequence[float], samples: float) -> Estimate:
    """The mean of what each problem has on average of so many independent samples of all problems, each 0 or 1, with Wilson's
    interval (Wilson 1927) at the effective sample size

    n_eff = p(1 − p) / Var(mean over problems),   between the number of problems and of samples.
    """
    problems = len(means)
    p = sum(means) / problems
    variance = sum((m - p) ** 2 for m in means) / max(1, problems - 1) / problems
    if p in (0.0, 1.0):
        return wilson(p, problems)
    return wilson(p, min(max(p * (1 - p) / variance, problems), samples) if variance else samples)


def wilson(p: float, n: float) -> Estimate:
    centre, spread = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return Estimate(p, max(0.0, (centre - spread) / (1 + Z**2 / n)), min(1.0, (centre + spread) / (1 + Z**2 / n)))


def pass_at_k(correct: Sequence[Sequence[float]], k: int) -> Estimate:
    """The chance that one of k samples is right, unbiased (Chen et al. 2021, arXiv 2107.03374, eq. 1), mean over problems:

    1 − C(n − c, k) / C(n, k)        for c right samples of n
    """
    chances = [1 - math.comb(len(row) - sum(v > 0 for v in row), k) / math.comb(len(row), k) for row in correct]
    return wilson(sum(chances) / len(chances), len(chances))


def majority_at_k(answers: Sequence[Sequence[str]], correct: Sequence[Sequence[float]]) -> Estimate:
    """Whether the most frequent answer is right, mean over problems. Samples without an answer have no vote; among equally
    frequent answers each has its share."""
    shares = []
    for given, right in zip(answers, correct, strict=True):
        votes = Counter(answer for answer in given if answer)
        top = [answer for answer, count in votes.items() if count == max(votes.values())]
        shares.append(sum(right[given.index(answer)] > 0 for answer in top) / len(top) if top else 0.0)
    return wilson(sum(shares) / len(shares), len(shares))
