"""Advantages against values worked out by hand. Each file of `trainers/advantages` has its table here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlcore.errors import UserError
from rlcore.recipe.load import load
from trainers import algorithm
from trainers.advantages.dr_grpo import dr_grpo
from trainers.advantages.grpo import grpo
from trainers.advantages.rloo import rloo


@pytest.mark.parametrize(
    ("advantage", "rewards", "expected"),
    [
        (grpo, [1, 0, 0, 1], [0.866024, -0.866024, -0.866024, 0.866024]),
        (rloo, [1, 0, 0, 1], [0.666667, -0.666667, -0.666667, 0.666667]),
        (dr_grpo, [1, 0, 0, 1], [0.5, -0.5, -0.5, 0.5]),
        (rloo, [3, 0], [3, -3]),
        (dr_grpo, [1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
    ],
)
def test_worked_values(make_batch: Callable, advantage: Callable, rewards: list[float], expected: list[float]) -> None:
    """GRPO and RLOO as worked in the reference; each value stands at every token of its completion."""
    batch = make_batch(rewards, [0] * len(rewards), [3, 1, 2, 4][: len(rewards)])
    got = advantage(batch)
    for i, value in enumerate(expected):
        torch.testing.assert_close(got.policy[i], torch.full_like(got.policy[i], value), atol=1e-6, rtol=0)
    assert not got.degenerate.any()


@pytest.mark.parametrize("advantage", [grpo, rloo, dr_grpo])
def test_groups_do_not_touch_each_other(make_batch: Callable, advantage: Callable) -> None:
    """Two groups together, interleaved, give what each gives alone."""
    together = advantage(make_batch([1, 5, 0, 7, 1, 5], [0, 1, 0, 1, 0, 1], [2] * 6)).policy
    first = advantage(make_batch([1, 0, 1], [0, 0, 0], [2] * 3)).policy
    second = advantage(make_batch([5, 7, 5], [0, 0, 0], [2] * 3)).policy
    torch.testing.assert_close(together[0::2], first)
    torch.testing.assert_close(together[1::2], second)


@pytest.mark.parametrize("advantage", [grpo, rloo, dr_grpo])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e6])
def test_equal_rewards_teach_nothing_and_are_counted(make_batch: Callable, advantage: Callable, value: float) -> None:
    got = advantage(make_batch([value] * 3 + [1, 2], [0, 0, 0, 1, 1], [2] * 5))
    assert got.policy[:3].abs().max() < 1e-6
    assert got.degenerate.tolist() == [True, True, True, False, False]


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=8))
def test_advantages_of_a_group_are_finite_and_sum_to_zero(rewards: list[float]) -> None:
    """Whatever the rewards; summed in double precision, relative to their size."""
    from rlcore.batch import GradedBatch
    from rlcore.types import Sampling

    n = len(rewards)
    zeros = torch.zeros(n, 1)
    batch = GradedBatch(
        [(1,)] * n, zeros.long(), zeros + 1, zeros + 1, zeros, zeros.long(), torch.zeros(n, dtype=torch.bool), Sampling(),
        torch.zeros(n, dtype=torch.long), {"r": torch.tensor(rewards)[:, None]}, torch.zeros(n),
    )  # fmt: skip
    for advantage in (grpo, rloo, dr_grpo):
        policy = advantage(batch).policy[:, 0].double()
        assert torch.isfinite(policy).all()
        assert abs(policy.sum()) <= 1e-5 * (1 + policy.abs().sum())


def test_a_group_of_one_is_refused_before_anything_loads() -> None:
    recipe = load(["quickstart", "rollout.samples=1"]).recipe
    with pytest.raises(UserError, match=r"set rollout\.samples >= 2"):
        algorithm.advantage(recipe)


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'rloo'"):
        algorithm.advantage(load(["quickstart", "algorithm.advantage=rlo"]).recipe)
    with pytest.raises(UserError, match="no option 'epsilom'; did you mean 'epsilon'"):
        algorithm.advantage(load(["quickstart", "algorithm.advantage={name: grpo, epsilom: 1}"]).recipe)


def test_a_file_of_the_user_plugs_in_by_import_path() -> None:
    bound = algorithm.advantage(load(["quickstart", "algorithm.advantage=trainers.advantages.rloo:rloo"]).recipe)
    assert bound.func is rloo
