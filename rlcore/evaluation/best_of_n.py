"""Best-of-N: how often is the one of N sampled solutions right that a reward model prefers?

Not of some N that were drawn, but on average over all subsets of size N of a pool of M, exactly. Let v be the distinct scores
of the pool, a(v) the number of solutions above v and k(v) at it, of which the share r(v) is right. The chance that v is the
highest score of a subset is a count of subsets, and solutions that share it are equally likely to be picked:

    A(N) = Σ_v r(v) · [C(M − a, N) − C(M − a − k, N)] / C(M, N)

A(1) is the pool's accuracy whatever the scores are. Beside it stand what no choice can exceed (one of N is right: pass@N) and
what needs no reward model (the most frequent answer of N). `rlcore.evaluation.stepwise` has the other way to use one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from rewards.credit import paid
from rewards.judge import Judge, probability
from rewards.judged_text import Asked
from rewards.steps import split
from rlcore.errors import UserError
from rlcore.evaluation.evaluate import Evaluation
from rlcore.evaluation.statistics import Estimate, majority_at_k, over_problems, pass_at_k
from rlcore.protocols import Progress, no_progress
from rlcore.types import Completion, Problem, Scored

Curve = Mapping[int, Estimate]  # accuracy by N
SOFTNESS = 0.1  # T of soft_min


@dataclass(frozen=True)
class Pool:
    """The solutions that were sampled of one problem, all of which the grader could judge."""

    problem: Problem
    completions: Sequence[Completion]
    correct: Sequence[float]
    answers: Sequence[str]


def pools(evaluation: Evaluation) -> list[Pool]:
    """Without problems of which a solution could not be judged."""
    return [
        Pool(group.problem, group.completions, [s.value for s in judged], [s.judged for s in judged])
        for group, scores in zip(evaluation.groups, evaluation.scores, strict=True)
        if len(judged := [s for s in scores if isinstance(s, Scored)]) == len(scores)
    ]


def best_of(pools: Sequence[Pool], scores: Sequence[Sequence[float]], counts: Sequence[int]) -> Curve:
    """A(N) for each N, from a score of each solution of each pool, with intervals over problems."""
    size = len(pools[0].correct)
    return {
        n: over_problems(
            [expected_best(row, pool.correct, n) for row, pool in zip(scores, pools, strict=True)], len(pools) * size / n
        )
        for n in counts
    }


def expected_best(scores: Sequence[float], correct: Sequence[float], n: int) -> float:
    """A(N) of one pool. For the scores 3, 2, 2, of which the last alone is right, and N = 2: of three pairs two have 3 as their
    highest, the third has 2 twice, one of them right, so 1/6."""
    pool = sorted(zip(scores, correct, strict=True), reverse=True)
    below, total = len(pool), 0.0
    for _, tied in groupby(pool, key=lambda pair: pair[0]):
        right = [value for _, value in tied]
        chance = math.comb(below, n) - math.comb(below - len(right), n)
        total += chance * sum(right) / len(right)
        below -= len(right)
    return total / math.comb(len(pool), n)


def bounds(pools: Sequence[Pool], counts: Sequence[int]) -> dict[str, Curve]:
    """What is reached without a reward model: `pass`, by one who knows the answer, and `majority`, by the most frequent answer,
    which is averaged over the pool cut into parts of N."""
    correct = [pool.correct for pool in pools]
    return {
        "pass": {n: pass_at_k(correct, n) for n in counts},
        "majority": {n: _majority(pools, n) for n in counts},
    }


def _majority(pools: Sequence[Pool], n: int) -> Estimate:
    parts = [slice(first, first + n) for first in range(0, len(pools[0].correct) - n + 1, n)]
    means = [
        sum(majority_at_k([pool.answers[part]], [pool.correct[part]]).value for part in parts) / len(parts) for pool in pools
    ]
    return over_problems(means, len(pools) * len(parts))


# -- the scores of solutions ---------------------------------------------------------------------------------------------------


def _product(log_odds: Sequence[float]) -> float:
    return -sum(max(-z, 0.0) + math.log1p(math.exp(-abs(z))) for z in log_odds)


def _soft_min(log_odds: Sequence[float]) -> float:
    return sum(paid("min", [probability(z) for z in log_odds], temperature=SOFTNESS, threshold=0.0))


AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    # of the log-odds of a solution's steps, in their order
    "min": min,  # of the step that is least likely right
    "last": lambda log_odds: log_odds[-1],
    "product": _product,  # Σ log P(right): that all are, were they independent (Lightman et al. 2023, arXiv 2305.20050)
    "soft_min": _soft_min,  # Σ softmax(−r/T)·r of r = 2·P(right) − 1 (PURE: Cheng et al. 2025, arXiv 2504.15275)
}


def steps_of(text: str, separator: str) -> tuple[str, ...]:
    """As process rewards find them."""
    return tuple(step.text for step in split(text, separator))


def solution_scores(
    judge: Judge, asked: Sequence[tuple[str, tuple[str, ...]]], aggregate: str, progress: Progress = no_progress
) -> list[float]:
    """The score of each (problem, steps): what a judge of solutions says of it, or the aggregate of what one of steps says of
    each after those before it. Minus infinity for no steps at all. What occurs twice is judged once."""
    if judge.of_solutions:
        parts = {each: [Asked(each[0], (), each[1])] for each in asked if each[1]}
    else:
        parts = {each: [Asked(each[0], each[1][:i], each[1][i : i + 1]) for i in range(len(each[1]))] for each in asked}
    found = judged_once(judge, [part for each in parts.values() for part in each], progress)
    scores = {each: AGGREGATES[aggregate]([found[a] for a in part]) for each, part in parts.items() if part}
    return [scores.get(each, -math.inf) for each in asked]


def judged_once(judge: Judge, asked: Sequence[Asked], progress: Progress = no_progress) -> dict[Asked, float]:
    """Raises UserError for what is longer than the judge can read: it has no place among the others."""
    distinct = list(dict.fromkeys(asked))
    found = dict(zip(distinct, judge.log_odds(distinct, progress), strict=True))
    read = {each: z for each, z in found.items() if z is not None}
    if len(read) < len(found):
        raise UserError(
            f"{len(found) - len(read)} of {len(found)} judged texts are longer than the reward model can read: "
            "lower --max-new-tokens, or take another reward model"
        )
    return read
