"""How many samples each problem of a step gets: GVM's allocation (Gradient Variance Minimisation: Yao et al. 2025, "Optimizing
chain-of-thought reasoners via gradient variance minimization in rejection sampling and RL", arXiv 2505.02391).

    n_i ∝ G_i / √(p_i + α / p_i^(β−1))        0 where p_i = 0 or G_i = 0

First every problem gets `pilot` samples; p_i is the share of them that is right, and G_i the size of their gradients. What is
left of the step's samples goes where it lowers the variance of the step's gradient most: to problems whose gradients are large
and that are rarely solved, but, by the term of α, not to those that hardly ever are. All samples of a problem, those of the
pilot too, are its group.

The paper's G_i is a gradient norm on the weights of the embedding or the head, which a sampler does not have. Ours stands in
for it: at the sampled token, the gradient of log π(y_t) by the logits is 1 − π(y_t), with π from the rollout's log-probs, and

    G_i = √( mean over the pilot of Σ_t (1 − π(y_t))² )

Worked: G = 1, 1, 1, 2 and p = 0.1, 0.5, 0.9, 0 have the shares 0.55021, 0.25756, 0.19224 and 0. Of 10 samples that is 5.50,
2.58, 1.92 and 0; rounded down they leave 2, which go to the largest remainders: 5, 3, 2 and 0.

The paper averages the gradient of each problem over its samples. Here a loss counts completions or tokens, so that a problem
with more samples has more weight in the step.

Where all are 0 (nobody solves anything, say) there is nothing to choose by, and the rest is divided evenly.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from rewards.compose import Rewards
from rlcore.protocols import Engine
from rlcore.recipe.schema import Budget
from rlcore.run.metrics import Max, Mean, Metrics
from rlcore.types import Completion, Group, Request, Score, Scored, seed_from

T = TypeVar("T")


def allocate(gradients: Sequence[float], rates: Sequence[float], total: int, alpha: float, beta: float) -> list[int]:
    """n_i for each G_i and p_i, which sum to `total`. Raises ValueError where one is not a number."""
    pairs = zip(gradients, rates, strict=True)
    weights = [g / math.sqrt(p + alpha / p ** (beta - 1)) if p else 0.0 for g, p in pairs]
    if not any(weights):
        weights = [1.0] * len(weights)
    quotas = [total * weight / sum(weights) for weight in weights]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def gradient(completions: Sequence[Completion]) -> float:
    """G of a problem's completions. Tokens that the policy did not sample count for nothing."""
    squares = [
        sum((1 - math.exp(logprob)) ** 2 for logprob, sampled in zip(c.logprobs, c.loss_mask, strict=True) if sampled)
        for c in completions
    ]
    return math.sqrt(sum(squares) / len(squares))


def second_stage(
    groups: Sequence[Group], budget: Budget, samples: int, engine: Engine, rewards: Rewards
) -> tuple[list[Group], list[Score], Metrics]:
    """The pilot's groups with what else of `samples` for each is theirs, and the verifiable component's scores of all that.
    A problem whose pilot could not be judged gets nothing."""
    pilot = split(rewards.verify(groups), [group.completions for group in groups])
    judged = [[score.value for score in row if isinstance(score, Scored)] for row in pilot]
    rates = [sum(values) / len(values) if values else 0.0 for values in judged]
    gradients = [gradient(group.completions) for group in groups]
    counts = allocate(gradients, rates, len(groups) * (samples - budget.pilot), budget.alpha, budget.beta)
    requests = further(groups, counts)
    sampled = split(engine.generate(list(itertools.chain(*requests))), requests)
    scores = split(rewards.verify([Group(g.problem, row) for g, row in zip(groups, sampled, strict=True) if row]), requests)
    whole = [replace(g, completions=[*g.completions, *row]) for g, row in zip(groups, sampled, strict=True)]
    sizes = [len(group.completions) for group in whole]
    metrics: Metrics = {"budget/min": Mean(min(sizes), 1), "budget/max": Max(max(sizes))}
    return whole, [score for rows in zip(pilot, scores, strict=True) for score in itertools.chain(*rows)], metrics


def further(groups: Sequence[Group], counts: Sequence[int]) -> list[list[Request]]:
    """The requests for so many more samples of each group, numbered on from those that the groups have of their problem."""
    used = Counter[str]()
    for group in groups:
        used[group.problem.id] += len(group.completions) + (group.greedy is not None)
    numbers = {name: itertools.count(count) for name, count in used.items()}
    requests = []
    for group, count in zip(groups, counts, strict=True):
        first, number = group.completions[0], numbers[group.problem.id]
        requests.append(
            [
                Request(first.problem_id, next(number), seed_from(first.seed, k), first.prompt_ids, first.sampling)
                for k in range(count)
            ]
        )
    return requests


def split(values: Iterable[T], like: Iterable[Sequence[object]]) -> list[list[T]]:
    """The values, one after the other, in rows as long as those of `like`."""
    left = iter(values)
    return [[next(left) for _ in row] for row in like]
