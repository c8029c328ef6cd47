"""Short-RL's lazy length penalty (arXiv 2505.12284): the formula by hand, its three gates, and MaxACC through a resume."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.compose import Rewards, scored
from rewards.length.short_rl import ShortRl
from rlcore.errors import UserError
from rlcore.plugins import bind, find
from rlcore.protocols import Reward
from rlcore.recipe.schema import Component
from rlcore.run.folder import Run
from rlcore.run.metrics import values
from rlcore.types import Completion, Group, Problem, Sampling, Score, Scored

Accuracy = Sequence[float | None]


def group(lengths: Sequence[int], accuracy: Accuracy, text: str = "") -> Group:
    completions = [
        Completion("p", k, 0, (1,), (2,) * n, (1,) * n, (0.0,) * n, (0,) * n, Sampling(), "stop", text)
        for k, n in enumerate(lengths)
    ]
    return Group(Problem("p", "", ""), completions, tuple(accuracy))


def paid(reward: ShortRl, lengths: Sequence[int], accuracy: Accuracy, state: float = 0.0) -> list[float]:
    scores = scored("it", reward, [group(lengths, accuracy)], state)
    return [score.value for score in scores if isinstance(score, Scored)]


def batch(right: int, of: int) -> Group:
    """`right` of `of` completions are correct; lengths go up from 1."""
    return group(range(1, of + 1), [1.0] * right + [0.0] * (of - right))


def test_the_worked_example() -> None:
    lengths, accuracy = [300, 350, 500, 900, 200], [1.0, 1.0, 1.0, 1.0, 0.0]
    assert paid(ShortRl(length_tolerance=100), lengths, accuracy) == pytest.approx([0.5, 0.5, 1 / 6, -0.5, 0])


def test_the_band_ends_at_the_tolerance_and_the_value_jumps_there() -> None:
    """At ℓ_min + τ_ℓ still 0.5; one token further 0.5 − 101/600."""
    values = paid(ShortRl(length_tolerance=100), [300, 400, 401, 900], [1.0] * 4)
    assert values == pytest.approx([0.5, 0.5, 0.5 - 101 / 600, -0.5])


def test_without_a_band_every_token_counts() -> None:
    assert paid(ShortRl(length_tolerance=0), [300, 301, 400], [1.0] * 3) == pytest.approx([0.5, 0.49, -0.5])


def test_each_problem_has_its_own_shortest_and_longest() -> None:
    reward = ShortRl(length_tolerance=0)
    scores = reward.score([group([10, 20], [1, 1]), group([100, 200], [1, 1])], 0.0)
    assert [score.value for score in scores if isinstance(score, Scored)] == [0.5, -0.5, 0.5, -0.5]


def test_wrong_completions_take_part_only_where_the_recipe_says_so() -> None:
    """200 tokens is then the shortest, and the wrong completion the best paid. One without a verdict never takes part."""
    lengths, accuracy = [50, 300, 350, 500, 900, 200], [None, 1.0, 1.0, 1.0, 1.0, 0.0]
    values = paid(ShortRl(length_tolerance=100, correct_only=False), lengths, accuracy)
    assert values == pytest.approx([0.5, 0.5 - 150 / 700, 0.5 - 300 / 700, -0.5, 0.5])


@pytest.mark.parametrize(("right", "opens"), [(10, True), (13, True), (12, True), (11, False), (0, False)])
def test_the_gate_opens_within_the_tolerance_of_the_best_accuracy(right: int, opens: bool) -> None:
    """The best is 13 of 20. 12 of 20 is 0.05 below it: within the tolerance; 11 is not. A first batch is its own best."""
    reward = ShortRl(length_tolerance=0)
    state = 0.0 if right == 10 else 13 / 20
    scores = reward.score([batch(right, 20)], state)
    assert any(isinstance(score, Scored) and score.value for score in scores) is opens
    if not opens:
        assert set(scores) == {Scored(0.0, f"accuracy {right / 20:.3f}, more than 0.05 below the best 0.650")}


def test_the_gate_counts_the_edge_of_the_tolerance_as_within_it() -> None:
    """For floats 0.6 − 0.05 is above or below 0.55, as luck has it; for the gate it is 0.55."""
    reward = ShortRl(length_tolerance=0, accuracy_tolerance=0.05)
    for best in range(2, 21):
        assert any(paid(reward, range(1, 21), batch(best - 1, 20).accuracy, best / 20)), best


def test_a_tolerance_of_one_keeps_the_gate_open() -> None:
    assert paid(ShortRl(length_tolerance=0, accuracy_tolerance=1), [1, 2, 3], [1, 1, 0], 1.0) == [0.5, -0.5, 0]


def test_the_batch_itself_counts_towards_the_best_before_it_is_compared() -> None:
    """Its accuracy is that of all valid completions of all groups; the best is kept, and told."""
    reward = ShortRl(length_tolerance=0)
    groups = [group([1, 2], [1, 0]), group([1, 2, 3], [1, 1, None])]
    state, reported = reward.update(groups, None, 0.5)  # type: ignore[arg-type]
    assert (state, values(reported)) == (0.75, {"best_accuracy": 0.75, "active": 1.0})
    state, reported = reward.update([batch(1, 2)], None, state)  # type: ignore[arg-type]
    assert (state, values(reported)) == (0.75, {"best_accuracy": 0.75, "active": 0.0})


def test_a_batch_that_nobody_could_judge_moves_nothing() -> None:
    reward = ShortRl(length_tolerance=0)
    assert paid(reward, [1, 2], [None, None], 0.5) == []  # its accuracy is not 0
    assert reward.update([group([1, 2], [None, None])], None, 0.5)[0] == 0.5  # type: ignore[arg-type]


completions = st.lists(st.tuples(st.integers(1, 60), st.sampled_from([1.0, 0.0])), min_size=1, max_size=8)
bands = st.integers(0, 60)


@given(completions, bands)
def test_only_the_correct_are_paid_and_the_shorter_never_less(members: list, band: int) -> None:
    values = paid(ShortRl(length_tolerance=band), *zip(*members, strict=True))
    assert all(value == 0 for value, (_, a) in zip(values, members, strict=True) if a != 1)
    correct = sorted((length, -value) for value, (length, a) in zip(values, members, strict=True) if a == 1)
    assert [cost for _, cost in correct] == sorted(cost for _, cost in correct)
    assert all(-0.5 <= cost <= 0.5 for _, cost in correct)
    assert not correct or correct[0][1] == -0.5
    within = [cost for length, cost in correct if length <= correct[0][0] + band]
    assert set(within) <= {-0.5}  # a single correct completion, and all within the band


@given(completions, bands, st.integers())
def test_the_order_of_the_completions_does_not_matter(members: list, band: int, seed: int) -> None:
    order = list(range(len(members)))
    random.Random(seed).shuffle(order)
    reward = ShortRl(length_tolerance=band)
    values = paid(reward, *zip(*members, strict=True))
    assert paid(reward, *zip(*[members[i] for i in order], strict=True)) == [values[i] for i in order]


def test_runs_that_verify_nothing_are_refused() -> None:
    for call in (ShortRl(length_tolerance=0).score, lambda g, s: ShortRl(length_tolerance=0).update(g, None, s)):  # type: ignore[arg-type]
        with pytest.raises(UserError, match="no reward component is verifiable: add `answer`"):
            call([group([1, 2], [])], 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length_tolerance": -1}, "length_tolerance cannot be -1: .* greater than or equal to 0"),
        ({"length_tolerance": 1, "accuracy_tolerance": 5}, "accuracy_tolerance cannot be 5: .* less than or equal to 1"),
    ],
)
def test_tolerances_that_mean_nothing_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bind("rewards", "short_rl", settings)


def test_recipes_find_it_by_name() -> None:
    assert find("rewards", "short_rl") is ShortRl


class Told(Reward):
    """Right where the completion says so."""

    verifiable = True

    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        return [Scored(float(c.text == "right")) for group in groups for c in group.completions]


def rewards() -> Rewards:
    return Rewards([Component(name=f"{__name__}:Told"), Component(name="short_rl", length_tolerance=0)], 1.0)  # type: ignore[call-arg]


def test_the_gate_of_a_resumed_run_stands_where_it_stood() -> None:
    """After a good batch a bad one pays nothing: here, and where the state was taken over as JSON; not in a fresh process."""
    good, bad = group([1, 2], [], "right"), [group([1, 2], [], "right"), *[group([1, 2], [], "wrong")] * 3]
    first, resumed, fresh = rewards(), rewards(), rewards()
    assert first.update(first.grade([good]))["short_rl/best_accuracy"].value == 1.0
    resumed.restore(json.loads(json.dumps(first.state())))
    assert first.grade(bad).metrics["reward/short_rl"].value == resumed.grade(bad).metrics["reward/short_rl"].value == 0
    assert resumed.update(resumed.grade(bad))["short_rl/active"].value == 0
    assert [row["value"] for row in fresh.grade(bad).ledger if row["component"] == "short_rl"] == [0.5, -0.5, *[0] * 6]


def test_evaluation_does_not_move_the_gate() -> None:
    """It asks for the verifiable component alone."""
    composed = rewards()
    composed.verify([group([1, 2], [], "right")])
    assert composed.state() == {"short_rl": 0.0}


class Crash(Exception):
    pass


class Even(Reward):
    """A verifiable reward that a random model gets right now and then."""

    verifiable = True

    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        return [Scored(float(c.token_ids[0] % 2 == 0)) for group in groups for c in group.completions]


def test_a_run_that_broke_and_was_resumed_pays_as_an_unbroken_one(
    launch: Callable, steps: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real steps, with evaluations in between that do better than any of them. The best accuracy comes before the break and
    closes the gate after it."""
    recipe = [
        f"rewards=[{{name: '{__name__}:Even'}}, {{name: short_rl, length_tolerance: 1, accuracy_tolerance: 0.01}}]",
        "eval={every: 1, data: {name: chain, split: test, count: 6}, samples: 2}",
    ]
    expected = launch("unbroken", *recipe)
    checkpoint = Run.checkpoint

    def crash(self: Run, step: int) -> None:
        if step == 3:
            raise Crash
        checkpoint(self, step)

    monkeypatch.setattr(Run, "checkpoint", crash)
    with pytest.raises(Crash):
        launch("broken", *recipe)
    monkeypatch.undo()
    assert steps(launch("broken", *recipe, resume=True)) == steps(expected)
    accuracy = [row["accuracy"] for row in steps(expected)]
    assert [row["short_rl/best_accuracy"] for row in steps(expected)] == [max(accuracy[: n + 1]) for n in range(3)]
    assert [row["short_rl/active"] for row in steps(expected)][::2] == [1, 0]
