"""GVM's allocation by hand, and what the second stage of sampling asks for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.errors import UserError
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL, Budget
from rlcore.types import Completion, Group, Invalid, Problem, Request, Sampling, Score, Scored
from trainers.budget import allocate, further, gradient, second_stage
from trainers.plan import plan

ALPHA, BETA = 1e-3, 2.0


def completion(problem: str, sample: int, *logprobs: float, mask: tuple[int, ...] | None = None) -> Completion:
    n = len(logprobs)
    return Completion(
        problem, sample, 100 + sample, (1, 2), (5,) * n, mask or (1,) * n, logprobs, (0,) * n, Sampling(), "stop", ""
    )


def test_the_papers_shares() -> None:
    """G = 1, 1, 1, 2 and p = 0.1, 0.5, 0.9, 0: √(0.1 + 0.001 / 0.1) = 0.33166, √0.502 = 0.70852 and √0.90111 = 0.94927, whose
    inverses have the shares 0.55021, 0.25756, 0.19224; nothing goes where nothing is solved, however large its gradient."""
    assert allocate([1, 1, 1, 2], [0.1, 0.5, 0.9, 0], 100_000, ALPHA, BETA) == [55021, 25756, 19223, 0]
    assert allocate([1, 1, 1, 2], [0.1, 0.5, 0.9, 0], 10, ALPHA, BETA) == [5, 3, 2, 0]


@pytest.mark.parametrize(
    ("gradients", "rates", "total", "alpha", "beta", "counts"),
    [
        ([1, 3], [0.5, 0.5], 8, ALPHA, BETA, [2, 6]),  # in proportion to G
        ([1, 1], [0.25, 1], 9, 0.0, BETA, [6, 3]),  # to 1/√p
        ([1, 1], [0.25, 1], 10, 3 / 16, 1.0, [6, 4]),  # √(7/16) and √(19/16): 1 / 0.6614 and 1 / 1.0897, of 10: 6.22 and 3.78
        ([1, 1], [0.25, 1], 10, 3 / 16, 2.0, [5, 5]),  # α / p: √(1/4 + 3/4) = 1 and √(19/16): 5.21 and 4.79
        ([1, 1], [0.25, 1], 10, 3 / 16, 3.0, [4, 6]),  # α / p²: √(1/4 + 3) = 1.803: 3.77 and 6.23
        ([1, 1, 1], [1, 1, 1], 8, ALPHA, BETA, [3, 3, 2]),  # equal remainders: the first ones first
        ([0, 1], [1, 1], 5, ALPHA, BETA, [0, 5]),  # no gradient
        ([2, 1, 1], [0, 0, 0], 7, ALPHA, BETA, [3, 2, 2]),  # nobody solves anything: evenly
        ([0, 0], [1, 0.5], 4, ALPHA, BETA, [2, 2]),  # nobody learns anything: evenly
        ([1], [0.0], 3, ALPHA, BETA, [3]),
    ],
)
def test_allocations_by_hand(gradients: list, rates: list, total: int, alpha: float, beta: float, counts: list[int]) -> None:
    assert allocate(gradients, rates, total, alpha, beta) == counts


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(0, 4)), min_size=1, max_size=12), st.integers(0, 200))
def test_the_sum_is_kept_and_none_is_off_by_one(problems: list[tuple[float, int]], total: int) -> None:
    gradients, rates = [g for g, _ in problems], [right / 4 for _, right in problems]
    counts = allocate(gradients, rates, total, ALPHA, BETA)
    assert sum(counts) == total
    weights = [g / math.sqrt(p + ALPHA / p) if p else 0 for g, p in zip(gradients, rates, strict=True)]
    weights = weights if any(weights) else [1] * len(weights)
    for count, weight in zip(counts, weights, strict=True):
        assert count >= 0
        assert abs(count - total * weight / sum(weights)) < 1 + 1e-6
        assert weight or not count


def test_the_gradient_by_hand() -> None:
    """π = 1/2 and 1/4 give 1/4 + 9/16 = 13/16; a masked token, a sure one and an empty completion give nothing, and one that
    could not be (−∞) gives 1: √((13/16 + 0 + 0 + 1) / 4)."""
    half, quarter = math.log(0.5), math.log(0.25)
    pilot = [
        completion("a", 0, half, quarter),
        completion("a", 1, 0.0, half, mask=(1, 0)),
        completion("a", 2),
        completion("a", 3, -math.inf),
    ]
    assert gradient(pilot) == pytest.approx(math.sqrt((13 / 16 + 1) / 4))


def test_a_gradient_that_is_not_a_number_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match="NaN"):
        allocate([gradient([completion("a", 0, math.nan)]), 1.0], [1.0, 1.0], 4, ALPHA, BETA)


def test_further_samples_are_numbered_on_and_have_random_numbers_of_their_own() -> None:
    """Two groups of problem a, with a greedy completion each, and one of b."""
    groups = [
        Group(Problem("a", "?", "1"), [completion("a", 0), completion("a", 1)], greedy=completion("a", 2)),
        Group(Problem("b", "?", "1"), [completion("b", 0), completion("b", 1)], greedy=completion("b", 2)),
        Group(Problem("a", "?", "1"), [completion("a", 3), completion("a", 4)], greedy=completion("a", 5)),
    ]
    requests = further(groups, [2, 0, 3])
    assert [[(r.problem_id, r.sample) for r in row] for row in requests] == [
        [("a", 6), ("a", 7)],
        [],
        [("a", 8), ("a", 9), ("a", 10)],
    ]
    seeds = {request.seed for row in requests for request in row}
    assert len(seeds) == 5
    assert seeds.isdisjoint(c.seed for group in groups for c in group.completions)
    assert {(request.prompt_ids, request.sampling) for row in requests for request in row} == {((1, 2), Sampling())}


# -- the second stage ----------------------------------------------------------------------------------------------------


class Says:
    """An engine whose completions are all of one token of probability 1/2."""

    def generate(self, requests: list[Request]) -> list[Completion]:
        return [request.completed((7,), (math.log(0.5),), 0, "stop", "") for request in requests]


class Knows:
    """Verifies: problem a is right once in two, b never, and c cannot be judged."""

    def verify(self, groups: list[Group]) -> list[Score]:
        assert all(group.completions for group in groups)
        return [
            Invalid("broken") if c.problem_id == "c" else Scored(float(c.problem_id == "a" and c.sample % 2))
            for group in groups
            for c in group.completions
        ]


def test_what_could_not_be_judged_gets_no_more_and_every_score_stays_with_its_completion() -> None:
    pilot = [Group(Problem(name, "?", "1"), [completion(name, k, math.log(0.5)) for k in range(2)]) for name in "abc"]
    whole, scores, metrics = second_stage(pilot, Budget(pilot=2), 4, Says(), Knows())  # type: ignore[arg-type]
    assert [[c.sample for c in group.completions] for group in whole] == [list(range(8)), [0, 1], [0, 1]]
    assert scores == [Scored(float(k % 2)) for k in range(8)] + [Scored(0.0)] * 2 + [Invalid("broken")] * 2
    assert {name: metric.value for name, metric in metrics.items()} == {"budget/min": 2, "budget/max": 8}


# -- what is refused -----------------------------------------------------------------------------------------------------

BUDGET = "algorithm.budget={pilot: 2}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([BUDGET, "cluster={mode: one_step_off}"], "algorithm.budget .* use cluster.mode sync"),
        ([BUDGET, "cluster={mode: async}"], "algorithm.budget .* use cluster.mode sync"),
        ([BUDGET, "rollout.tree={segment: 4}"], "algorithm.budget and rollout.tree"),
        ([BUDGET, "algorithm.dynamic_sampling={}"], "algorithm.budget and algorithm.dynamic_sampling"),
        ([BUDGET, "rollout.samples=2"], "algorithm.budget.pilot 2 leaves nothing to divide of rollout.samples 2"),
        (["algorithm.budget={pilot: 1}"], "'algorithm.budget.pilot': .*greater than or equal to 2"),
        ([BUDGET, "rewards=[format]"], "algorithm.budget reads accuracy, and no reward component is verifiable"),
        (["algorithm.curriculum={}", "rewards=[format]"], "algorithm.curriculum reads accuracy"),
        (["algorithm.replay={}", "rewards=[format]"], "algorithm.replay reads accuracy"),
        (["algorithm.replay={share: 0.25}", "rollout.prompts_per_step=3"], "algorithm.replay.share 0.25 of 3 problems is none"),
        (["algorithm.curriculum={candidates: 1}"], "'algorithm.curriculum.candidates': .*greater than or equal to 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_work_is_refused_by_name(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        asked(["quickstart", "eval=null", *overrides])


def asked(arguments: list[str]) -> None:
    recipe = load(arguments).recipe
    assert isinstance(recipe, RL)
    plan(recipe).rewards.close()
