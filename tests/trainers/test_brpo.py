"""BRPO against sums written out as the paper has them, and a run of it from recipe to metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcore import jobs
from rlcore.batch import GradedBatch, rows
from rlcore.protocols import Reward
from rlcore.recipe.load import load
from rlcore.types import Scored
from tests.conftest import batch_of
from tests.trainers.test_algorithm import ANYTIME, SMALL
from tests.trainers.test_loop import metrics
from trainers.advantages.brpo import brpo

Earned = list[list[list[float]]]  # by thought and budget, what each summary earned


class Even(Reward):
    """Right where the last token is an even one: a random model's summaries differ in it."""

    verifiable = True

    def score(self, groups, state):
        return [Scored(float(c.token_ids[-1] % 2 == 0)) for group in groups for c in group.completions]


def cut(problems: list[Earned], budgets: list[int]) -> GradedBatch:
    """Every row is as many tokens of its thought as the budget, none that is forced, and two of its summary."""
    told = [
        (group, z, budget, value)
        for group, thoughts in enumerate(problems)
        for z, thought in enumerate(thoughts)
        for budget, values in zip(budgets, thought, strict=True)
        for value in values
    ]
    group, thought, budget, earned = zip(*told, strict=True)
    batch = batch_of(earned, group, [length + 2 for length in budget])
    return replace(batch, cut=torch.tensor([thought, budget, budget]).T)


def test_as_worked_in_the_reference() -> None:
    """Each r is the mean of two summaries; the advantages stand at the thought's tokens, those of its summaries after it."""
    halves: Earned = [[[0, 0], [1, 1], [2, 0], [1, 1]], [[0, 0], [0, 0], [0, 0], [0, 2]]]
    batch = cut([halves], [1, 2, 3, 4])
    policy = brpo(batch).policy
    expected = [[0.25, 0.375, 0.14583, 0.02679], [-0.25, -0.125, 0.0625, 0.1875]]
    torch.testing.assert_close(policy[::2, 0].view(2, 4), torch.tensor(expected), atol=1e-5, rtol=0)
    for i, budget in enumerate([1, 1, 2, 2, 3, 3, 4, 4] * 2):
        assert (policy[i, :budget] == policy[i, 0]).all()
    summaries = [policy[i, budget].item() for i, budget in enumerate([1, 1, 2, 2, 3, 3, 4, 4] * 2)]
    assert summaries == pytest.approx([0, 0, 0, 0, 1, -1, 0, 0, 0, 0, 0, 0, 0, 0, -1, 1])


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        ("uniform", [0.5 - 0.25, 0.5 - (0 + 0.25) / 2]),  # G = 0.5, 0.5 and 0, 0; V1 = 0
        ("linear", [0.75 - 0.375, 0.75 - (0 + 0.375) / 2]),  # p = 1/4, 3/4
        ("base", [1 - 0.5, 1 - (0 + 0.5) / 2]),
    ],
)
def test_the_prior_by_hand(prior: str, expected: list[float]) -> None:
    """Budgets of 1 and 3 tokens: one thought is right at the second, the other never."""
    policy = brpo(cut([[[[0], [1]], [[0], [0]]]], [1, 3]), prior=prior).policy
    assert policy[:2, 0].tolist() == pytest.approx(expected)


def slow(thoughts: Earned, prior: list[float]) -> list[list[float]]:
    segments = range(len(prior))
    r = [[fmean(values) for values in thought] for thought in thoughts]
    to_go = [[sum(prior[j] * row[j] for j in segments if j >= s) for s in segments] for row in r]
    found = []
    for z, row in enumerate(r):
        found.append([])
        for s in segments:
            weights = [2**j for j in range(s)]
            past = sum(w * row[j] for j, w in enumerate(weights)) / sum(weights) if s else 0.0
            of_itself, of_others = past * sum(prior[s:]), fmean(each[s] for each in to_go)
            found[z].append(to_go[z][s] - (s * of_itself + (len(prior) - s) * of_others) / len(prior))
    return found


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Earned], list[int]]:
    budgets = sorted(draw(st.sets(st.integers(1, 9), min_size=1, max_size=5)))
    rewards = st.lists(st.sampled_from([0.0, 1.0, 0.25, -2.0]), min_size=2, max_size=2)
    thought = st.lists(rewards, min_size=len(budgets), max_size=len(budgets))
    return draw(st.lists(st.lists(thought, min_size=2, max_size=4), min_size=1, max_size=2)), budgets


@given(problems(), st.sampled_from(["uniform", "linear", "base"]), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_it_is_the_sums_of_the_paper(asked: tuple[list[Earned], list[int]], prior: str, random: object) -> None:
    """Whatever the order of the rows, and whatever other problems there are."""
    written, budgets = asked
    last = [float(budget == budgets[-1]) for budget in budgets]
    weights = {"uniform": [1.0] * len(budgets), "linear": budgets, "base": last}[prior]
    p = [weight / sum(weights) for weight in weights]
    batch = cut(written, budgets)
    order = list(range(len(batch.group)))
    random.shuffle(order)  # type: ignore[attr-defined]
    got = brpo(rows(batch, order), prior=prior)  # type: ignore[arg-type]
    policy = torch.empty_like(got.policy)
    policy[order] = got.policy
    expected = [value for thoughts in written for row in slow(thoughts, p) for value in row for _ in range(2)]
    assert policy[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    cells = [values for thoughts in written for thought in thoughts for values in thought]
    after = policy[torch.arange(len(order)), batch.cut[:, 2]]  # type: ignore[index]
    assert after.tolist() == pytest.approx([value - fmean(values) for values in cells for value in values], abs=1e-5)


def test_summaries_after_a_thought_that_has_ended_are_compared_with_each_other() -> None:
    """It has 2 tokens, and the budgets 3 and 4 are one place; 1 0 0 0 is less its mean there."""
    batch = cut([[[[1, 1], [1, 0], [0, 0]], [[0, 0]] * 3]], [1, 3, 4])
    ends = batch.cut.clone()  # type: ignore[union-attr]
    ends[2:6, 2] = 2
    policy = brpo(replace(batch, cut=ends)).policy
    assert policy[2:6, 2].tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_a_thought_that_lacks_a_budget_is_left_out() -> None:
    """Of three thoughts the last has no summary at the second budget that could be judged: the others do as if it were not."""
    batch = cut([[[[0, 0], [1, 1]], [[0, 1], [0, 0]], [[1, 0], [1, 1]]]], [1, 2])
    alone, without = brpo(rows(batch, range(8))).policy, brpo(rows(batch, range(10))).policy
    torch.testing.assert_close(without[:8], alone)
    assert without[8:, 0].tolist() == [0, 0]
    assert without[8:, 1].tolist() == [0.5, -0.5]


@pytest.mark.parametrize("choice", [[], ["algorithm.dynamic_sampling={}", "update.minibatches=2"]], ids=["plain", "dynamic"])
def test_a_run_tells_the_accuracy_at_each_budget(choice: list[str], tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = ["quickstart", *SMALL, f"rewards=[{{name: '{__name__}:Even'}}]", *ANYTIME, *choice]
    jobs.run(load([*recipe, f"model={tiny}", f"output={folder}", "steps=2"]), resume=False)
    for row in metrics(folder):
        assert row["grad_norm"] > 0
        assert row["parity"] < 1e-4
        ledger = pq.read_table(folder / "ledger" / f"step-{int(row['step']):06}.parquet").to_pylist()
        for level, budget in enumerate([2, 4]):
            values = [told["value"] for told in ledger if told["sample"] // 2 % 2 == level]
            assert row[f"accuracy/{budget}"] == pytest.approx(fmean(values))
