"""The length rewards without state, each by the worked numbers of its file, and what they have in common."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.compose import scored
from rewards.length.cosine import Cosine
from rewards.length.detail import Detail
from rewards.length.efficiency import Efficiency
from rewards.length.kimi import Kimi
from rewards.length.lcpo_exact import LcpoExact
from rewards.length.lcpo_max import LcpoMax
from rewards.length.triangle import Triangle
from rlcore.errors import UserError
from rlcore.plugins import bind
from rlcore.protocols import Reward
from rlcore.types import Completion, Group, Problem, Sampling, Scored

Accuracy = Sequence[float | None]
RIGHT, WRONG = 1.0, 0.0
ALPHA = 0.05  # for lengths of a dozen tokens


def group(lengths: Sequence[int], accuracy: Accuracy, budget: object = None) -> Group:
    completions = [
        Completion("p", k, 0, (1,), (2,) * n, (1,) * n, (0.0,) * n, (0,) * n, Sampling(), "stop", "")
        for k, n in enumerate(lengths)
    ]
    return Group(Problem("p", "", "", meta={} if budget is None else {"budget": budget}), completions, tuple(accuracy))


def paid(reward: Reward, lengths: Sequence[int], accuracy: Accuracy, budget: object = None) -> list[float]:
    scores = scored("it", reward, [group(lengths, accuracy, budget)], None)
    return [score.value for score in scores if isinstance(score, Scored)]


# -- kimi ----------------------------------------------------------------------------------------------------------------


def test_kimis_worked_example() -> None:
    lengths, accuracy = [300, 350, 500, 900, 200], [RIGHT] * 4 + [WRONG]
    assert paid(Kimi(), lengths, accuracy) == pytest.approx([0.357143, 0.285714, 0.071429, -0.5, 0], abs=1e-6)


def test_kimi_compares_with_all_that_were_judged() -> None:
    """Here a wrong completion is the longest. It loses by that, the shorter wrong one gains nothing, and the one that could not
    be judged is neither paid nor the shortest."""
    values = paid(Kimi(), [10, 300, 500, 400, 900], [None, RIGHT, RIGHT, WRONG, WRONG])
    assert values == pytest.approx([0.5, 0.5 - 200 / 600, 0, -0.5])


def test_kimi_pays_nothing_where_all_are_of_one_length() -> None:
    assert paid(Kimi(), [7, 7, 7], [RIGHT, RIGHT, WRONG]) == [0, 0, 0]
    assert paid(Kimi(), [7], [RIGHT]) == [0]


# -- cosine --------------------------------------------------------------------------------------------------------------


def test_cosines_worked_example() -> None:
    lengths = [100, 200, 300, 400]
    reward = Cosine(max_tokens=400)
    assert paid(reward, lengths, [RIGHT] * 4) == pytest.approx([0.853553, 0.5, 0.146447, -1], abs=1e-6)
    assert paid(reward, lengths, [WRONG] * 4) == pytest.approx([-0.853553, -0.5, -0.146447, -1], abs=1e-6)


def test_cosine_beside_an_answer_has_the_papers_numbers() -> None:
    """Right 2 → 1 and wrong −10 → 0 over the length, exceeded −10; a right one that exceeded is paid 1 more."""
    reward = Cosine(max_tokens=1000, right=(1, 0), wrong=(-10, 0), exceeded=-10)
    lengths = [0, 500, 999, 1000, 1001]
    right = [1 + value for value in paid(reward, lengths, [RIGHT] * 5)]
    assert right == pytest.approx([2, 1.5, 1, -9, -9], abs=1e-4)
    assert paid(reward, lengths, [WRONG] * 5) == pytest.approx([-10, -5, 0, -10, -10], abs=1e-4)


def test_cosines_pairs_are_read_from_a_recipe() -> None:
    reward = bind("rewards", "cosine", {"max_tokens": 10, "right": [0.5, 0.1], "wrong": [0, 0]})()
    assert paid(reward, [5, 5], [RIGHT, WRONG]) == pytest.approx([0.3, 0])
    with pytest.raises(UserError, match=r"'cosine': right cannot be \[1\]"):
        bind("rewards", "cosine", {"max_tokens": 10, "right": [1]})


# -- detail --------------------------------------------------------------------------------------------------------------


def test_details_worked_example() -> None:
    """Solutions of 1, 3, 4 and 9 steps, and an empty one; whether they are right is nothing to it."""
    texts = ["#### 1", "a\nb\n\n#### 1", "a\nb\nc\n#### 1", "a\n" * 8 + "#### 1", ""]
    completions = [
        replace(completion, text=text) for completion, text in zip(group([1] * 5, []).completions, texts, strict=True)
    ]
    scores = Detail(cap=4, separator="\n").score([Group(Problem("p", "", ""), completions, (0.0,) * 5)], None)
    assert [score.value for score in scores if isinstance(score, Scored)] == [0.25, 0.75, 1, 1, 0]


def test_a_separator_that_separates_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="detail: the separator between steps cannot be empty"):
        Detail(cap=4, separator="")


# -- efficiency ----------------------------------------------------------------------------------------------------------


def test_efficiencys_worked_example() -> None:
    values = paid(Efficiency(), [100, 200, 300, 5000], [RIGHT, RIGHT, RIGHT, WRONG])
    assert values == pytest.approx([-0.227103, -0.5, -0.772897, 0], abs=1e-6)
    assert [1 + 0.1 * value for value in values[:3]] == pytest.approx([0.9773, 0.95, 0.9227], abs=1e-4)


@pytest.mark.parametrize(("lengths", "accuracy"), [([9, 9, 9], [RIGHT, RIGHT, RIGHT]), ([3, 9, 30], [WRONG, RIGHT, WRONG])])
def test_without_a_spread_every_right_one_counts_as_average(lengths: list[int], accuracy: list[float]) -> None:
    assert paid(Efficiency(), lengths, accuracy) == [-0.5 * a for a in accuracy]


# -- budgets -------------------------------------------------------------------------------------------------------------


def test_lcpo_exacts_worked_example() -> None:
    """On both sides of the budget, right and wrong alike."""
    assert paid(LcpoExact(), [1000, 2000, 3000], [RIGHT, WRONG, WRONG], 2000) == pytest.approx([-0.3, 0, -0.3])
    assert paid(LcpoExact(alpha=0.01), [90, 130], [], 100) == pytest.approx([-0.1, -0.3])


def test_lcpo_maxs_worked_example() -> None:
    lengths = [200, 1000, 2000, 3000, 4000]
    assert paid(LcpoMax(), lengths, [RIGHT] * 5, 2000) == pytest.approx([0, -0.2, -0.5, -0.8, -1])
    assert paid(LcpoMax(), lengths, [WRONG] * 5, 2000) == [0] * 5


@given(st.integers(1, 5000), st.integers(1, 4000), st.sampled_from([RIGHT, WRONG]))
def test_lcpo_max_and_the_answer_add_up_to_the_papers_reward(length: int, budget: int, right: float) -> None:
    whole = right + paid(LcpoMax(), [length], [right], budget)[0]
    assert whole == pytest.approx(right * min(max(0.0003 * (budget - length) + 0.5, 0), 1))


def test_the_triangles_worked_example() -> None:
    assert paid(Triangle(), [0, 50, 100, 150, 200, 900], [], 100) == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert paid(Triangle(), [1, 2], [], 1) == [1, 0]


# -- all of them ---------------------------------------------------------------------------------------------------------

EVERY = [Kimi(), Cosine(max_tokens=50), Efficiency(), LcpoExact(), LcpoMax(), Triangle()]
completions = st.lists(st.tuples(st.integers(1, 60), st.sampled_from([RIGHT, WRONG])), min_size=1, max_size=8)


@pytest.mark.parametrize("reward", EVERY, ids=lambda reward: type(reward).__name__)
@given(members=completions, seed=st.integers())
def test_the_order_of_the_completions_does_not_matter(reward: Reward, members: list, seed: int) -> None:
    order = list(range(len(members)))
    random.Random(seed).shuffle(order)
    values = paid(reward, *zip(*members, strict=True), budget=20)
    assert paid(reward, *zip(*[members[i] for i in order], strict=True), budget=20) == [values[i] for i in order]
    assert all(map(math.isfinite, values))


@pytest.mark.parametrize("reward", EVERY, ids=lambda reward: type(reward).__name__)
def test_each_problem_is_paid_by_itself_and_in_order(reward: Reward) -> None:
    groups = [group([10, 30], [RIGHT, RIGHT], 20), group([40, 20, 45], [WRONG, RIGHT, RIGHT], 30)]
    both = reward.score(groups, None)
    assert both == [score for each in groups for score in reward.score([each], None)]


@pytest.mark.parametrize("reward", EVERY, ids=lambda reward: type(reward).__name__)
@pytest.mark.parametrize("budget", [None, 0, "512", 10.5])
def test_what_a_reward_says_that_it_reads_it_cannot_do_without(reward: Reward, budget: object) -> None:
    """Recipes are refused by that before anything is loaded; elsewhere, as in TRL, the reward refuses."""
    cases = {
        "reads which completions are correct, and no reward component is verifiable: add `answer`": (
            reward.reads_accuracy,
            group([1, 2], [], 5),
        ),
        f"the length budget of p is {budget}, and not a number of tokens: add `length_budget`": (
            reward.reads_budget,
            group([1, 2], [RIGHT, WRONG], budget),
        ),
    }
    for message, (reads, lacking) in cases.items():
        with pytest.raises(UserError, match=message) if reads else nullcontext():
            reward.score([lacking], None)


def test_a_run_with_all_of_them_goes_on_as_if_unbroken(launch: Callable) -> None:
    """Real steps and evaluations: two, then another two, are four to the bit, and budgets are those of the recipe."""
    recipe = [
        "prompt.template='{problem}+{budget}'",
        "length_budget={decay: {start: 12, factor: 0.5, every: 2}}",
        f"rewards=[answer, kimi, efficiency, {{name: cosine, max_tokens: 12}}, {{name: lcpo_exact, alpha: {ALPHA}}}, "
        f"{{name: lcpo_max, alpha: {ALPHA}}}, triangle]",
        "eval={every: 1, data: {name: chain, split: test, count: 6}, samples: 2}",
    ]

    def rows(folder: Path) -> list[dict[str, float]]:
        found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if not k.startswith("time/") and k != "tokens_per_second"} for row in found]

    unbroken = rows(launch("unbroken", *recipe, "steps=4"))
    launch("broken", *recipe, "steps=2")
    assert rows(launch("broken", *recipe, "steps=4", resume=True)) == unbroken
    trained = [row for row in unbroken if "grad_norm" in row]
    assert [row["length/budget"] for row in trained] == [12, 12, 6, 6]
    for row in trained:
        assert -ALPHA * 12 <= row["reward/lcpo_exact"] <= 0 <= row["reward/triangle"] <= 1
