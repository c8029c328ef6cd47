"""Advantages against values worked out by hand, and what holds for all of them: the files of `trainers/advantages` are found by
name, so that a new one is tested at once. Those with a critic have more tests in `test_gae.py`, those on trees in
`test_tree_advantages.py`, that of thoughts cut at budgets in `test_brpo.py`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlcore import plugins
from rlcore.batch import Advantages, GradedBatch, rows
from rlcore.errors import UserError
from rlcore.recipe.load import load
from rlcore.types import Sampling
from tests.conftest import batch_of
from trainers import algorithm
from trainers.advantages.dr_grpo import dr_grpo
from trainers.advantages.gpg import gpg
from trainers.advantages.grpo import grpo
from trainers.advantages.opo import opo
from trainers.advantages.reinforce_pp import reinforce_pp
from trainers.advantages.reinforce_pp_baseline import reinforce_pp_baseline
from trainers.advantages.remax import remax
from trainers.advantages.rloo import rloo
from trainers.whiten import whitened

NAMES = sorted(plugins.names("trainers.advantages"))
OVER_THE_BATCH = {"gpg", "reinforce_pp", "reinforce_pp_baseline"}  # other problems change what a completion gets
BY_ITSELF = {name: {"whiten": False} for name in ("gae", "length_adaptive_gae", "treepo")}  # options under which they do not
NOT_OF_ONE = {"grpo", "prime", "pure", "rloo"}  # 0/0 in a group of one, and recipes and the sampler let none through


# -- by hand -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advantage", "rewards", "expected"),
    [
        (grpo, [1, 0, 0, 1], [0.866024, -0.866024, -0.866024, 0.866024]),
        (rloo, [1, 0, 0, 1], [0.666667, -0.666667, -0.666667, 0.666667]),
        (dr_grpo, [1, 0, 0, 1], [0.5, -0.5, -0.5, 0.5]),
        (rloo, [3, 0], [3, -3]),
        (dr_grpo, [1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
        (opo, [1, 0, 0, 1], [0.3, -0.7, -0.7, 0.3]),  # baseline (3 + 4)/10
        (opo, [1, 0], [0.25, -0.75]),
        (gpg, [1, 0, 0, 1], [0.5, -0.5, -0.5, 0.5]),
        (reinforce_pp, [1, 0, 0, 1], [0.621059, -1.449138, -1.449138, 0.621059]),  # 7 tokens of 1, 3 of 0: 0.7 and √(2.1/9)
        (reinforce_pp_baseline, [1, 0, 0, 1], [0.621059, -1.449138, -1.449138, 0.621059]),  # the same less 0.5
        (reinforce_pp, [1, 0], [0.5, -1.5]),
    ],
)
def test_worked_values(make_batch: Callable, advantage: Callable, rewards: list[float], expected: list[float]) -> None:
    """GRPO and RLOO as worked in the reference; each value stands at every token of its completion."""
    batch = make_batch(rewards, [0] * len(rewards), [3, 1, 2, 4][: len(rewards)])
    got = advantage(batch)
    for i, value in enumerate(expected):
        policy = got.policy[i][batch.loss_mask[i].bool()]
        torch.testing.assert_close(policy, torch.full_like(policy, value), atol=1e-6, rtol=0)
    assert not got.degenerate.any()


def test_opo_counts_the_tokens_in_the_loss(make_batch: Callable) -> None:
    """Of 3 and 1 tokens, the first one left out of the loss for one: 2/3, not 3/4; for all three: the other's reward, 0."""
    batch = make_batch([1, 0], [0, 0], [3, 1])
    for mask, baseline in (([0, 1, 1], 2 / 3), ([0, 0, 0], 0.0)):
        batch.loss_mask[0] = torch.tensor(mask)
        assert opo(batch).policy[1].tolist() == pytest.approx([-baseline] * 3)


def test_reinforce_pp_discounts_what_comes_later(make_batch: Callable) -> None:
    """γ = 0.5 and one reward at the third token: G = 0.25, 0.5, 1, whose mean is 7/12 and whose variance is 7/48."""
    got = reinforce_pp(make_batch([1], [0], [3]), gamma=0.5).policy[0].tolist()
    assert got == pytest.approx([(g - 7 / 12) / (7 / 48) ** 0.5 for g in (0.25, 0.5, 1)])


def test_reinforce_pp_compares_all_completions(make_batch: Callable) -> None:
    """So problems of equal rewards tell it something, if their rewards are not the same."""
    got = reinforce_pp(make_batch([1, 1, 0, 0], [0, 0, 1, 1], [1] * 4))
    assert got.policy[:, 0].tolist() == pytest.approx([0.75**0.5] * 2 + [-(0.75**0.5)] * 2)
    assert not got.degenerate.any()


def test_reinforce_pp_baseline_has_one_spread_for_all_groups(make_batch: Callable) -> None:
    """Deviations ±0.5 and ±5, a token each: divided by √(50.5/3), where GRPO makes both ±0.707."""
    batch = make_batch([1, 0, 10, 0], [0, 0, 1, 1], [1] * 4)
    got = reinforce_pp_baseline(batch).policy[:, 0].tolist()
    assert got == pytest.approx([c / (50.5 / 3) ** 0.5 for c in (0.5, -0.5, 5, -5)])
    assert grpo(batch).policy[:, 0].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)] * 2, abs=1e-5)


def test_reinforce_pp_baseline_pushes_a_degenerate_group_where_length_goes_with_reward(make_batch: Callable) -> None:
    """Tokens 0.5, 0.5, 0.5, −0.5, 0, 0 have the mean 1/6, which the group of equal rewards is pushed down by."""
    got = reinforce_pp_baseline(make_batch([1, 0, 1, 1], [0, 0, 1, 1], [3, 1, 1, 1]))
    spread = ((3 * (1 / 3) ** 2 + (2 / 3) ** 2 + 2 * (1 / 6) ** 2) / 5) ** 0.5
    assert got.policy[2:, 0].tolist() == pytest.approx([-1 / 6 / spread] * 2)
    assert got.degenerate.tolist() == [False, False, True, True]


def test_remax_compares_with_the_greedy_completion(make_batch: Callable) -> None:
    """One completion a problem; at each token what is still to be earned, less all that the greedy one earned."""
    batch = make_batch([1, 0.5, 0.25], [0, 1, 2], [2, 2, 2])
    batch.rewards["answer"][1] = torch.tensor([0.5, 0.5])
    got = remax(replace(batch, greedy=torch.full((3,), 0.25)))
    assert got.policy.tolist() == [[0.75, 0.75], [0.75, 0.25], [0.0, 0.0]]
    assert got.degenerate.tolist() == [False, False, True]


def test_gpg_makes_up_for_degenerate_groups(make_batch: Callable) -> None:
    """Two of four completions are in a group that tells them apart: α = 2; verl's would be 4/3. `norm` divides."""
    batch = make_batch([1, 0, 1, 1], [0, 0, 1, 1], [1] * 4)
    assert gpg(batch).policy[:, 0].tolist() == [1, -1, 0, 0]
    assert gpg(batch, norm=4).policy[:, 0].tolist() == [0.25, -0.25, 0, 0]


# -- of every estimator --------------------------------------------------------------------------------------------------


def random_batch(seed: int, scale: float = 1.0) -> GradedBatch:
    """Up to three groups of two to four completions in any order, of 0 to 5 tokens of two kinds, with everything that an
    advantage may need. Each token earns something of the size of `scale`; some, and all of some completions, are outside the
    loss, where values are not numbers; a log-prob is −∞."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    group = torch.cat([torch.full((int(size),), number) for number, size in enumerate(integer(2, 4, int(integer(1, 3))))])
    group = group[torch.randperm(len(group), generator=generator)]
    count, width = len(group), 5
    present = (torch.arange(width) < integer(0, width, count, 1)).float()
    loss_mask = present * (integer(0, 3, count, width) > 0) * (integer(0, 4, count, 1) > 0)
    nodes = (integer(0, 1, count, 3) * torch.tensor([0, 1, 2])).cumsum(1)  # of a binary tree
    logprobs = -torch.rand(count, width, generator=generator) * present
    logprobs[0, 0] = -torch.inf
    return GradedBatch(
        prompt_ids=[(1, 2)] * count,
        tokens=integer(0, 1, count, width) * present.long(),
        present=present,
        loss_mask=loss_mask,
        rollout_logprobs=logprobs,
        versions=torch.zeros(count, width, dtype=torch.long),
        truncated=torch.zeros(count, dtype=torch.bool),
        sampling=Sampling(),
        group=group,
        rewards={"steps": scale * normal(count, width) * present, "answer": scale * integer(0, 1, count, width) * present},
        accuracy=None,
        process=("steps",),
        greedy=scale * normal(int(group.max()) + 1)[group],
        path=torch.where(torch.arange(3) <= integer(0, 2, count, 1), nodes, -1),
        cut=torch.stack([integer(0, 1, count), integer(2, 3, count), integer(0, 3, count)], 1),
        values=normal(count, width).masked_fill(loss_mask == 0, torch.nan),
    )


def of_one_reward(batch: GradedBatch, reward: float) -> GradedBatch:
    """The batch with the same total for every completion, the greedy ones included; it is earned at the end."""
    answer = torch.zeros_like(batch.loss_mask)
    answer[:, -1] = reward
    return replace(batch, rewards={"answer": answer}, greedy=torch.full(batch.group.shape, reward))


def padded(batch: GradedBatch, columns: int) -> GradedBatch:
    def wider(values: Tensor, fill: float = 0) -> Tensor:
        return torch.nn.functional.pad(values, (0, columns), value=fill)

    assert batch.values is not None
    same = ("tokens", "present", "loss_mask", "rollout_logprobs", "versions")
    return replace(
        batch,
        **{name: wider(getattr(batch, name)) for name in same},
        rewards={name: wider(reward) for name, reward in batch.rewards.items()},
        values=wider(batch.values, torch.nan),
    )


def assert_same(batch: GradedBatch, got: Advantages, expected: Advantages) -> None:
    """What the learner and the critic see, of `batch`; `got` may be wider."""
    inside, width = batch.loss_mask.bool(), batch.loss_mask.shape[1]
    torch.testing.assert_close(got.policy[:, :width][inside], expected.policy[inside], atol=1e-4, rtol=1e-4)
    assert torch.equal(got.degenerate, expected.degenerate)
    if expected.returns is not None:
        assert got.returns is not None
        torch.testing.assert_close(got.returns[:, :width][inside], expected.returns[inside])


def estimator(name: str) -> Callable[..., Advantages]:
    return plugins.find("trainers.advantages", name)


def needs(name: str) -> tuple[str, ...]:
    return getattr(estimator(name), "needs", ())


every_estimator = pytest.mark.parametrize("name", NAMES)
seeds = st.integers(0, 2**32)


@every_estimator
@given(seed=seeds, scale=st.sampled_from([0, 1e-20, 1e-3, 1, 1e6, 1e30]))
@settings(max_examples=50, deadline=None)
def test_whatever_the_rewards_it_is_finite_and_leaves_the_batch_alone(name: str, seed: int, scale: float) -> None:
    """Also where nothing is in the loss; returns are for critics alone."""
    batch = random_batch(seed, scale)
    before = copy.deepcopy(batch)
    got = estimator(name)(batch)
    assert got.policy.shape == batch.tokens.shape
    assert got.policy.dtype == torch.float32
    assert torch.isfinite(got.policy).all()
    assert got.degenerate.shape == batch.group.shape
    assert got.degenerate.dtype == torch.bool
    assert (got.returns is not None) == ("values" in needs(name))
    if got.returns is not None:
        assert got.returns.shape == batch.tokens.shape
        assert torch.isfinite(got.returns).all()
    assert_same(batch, estimator(name)(before), got)
    torch.testing.assert_close(batch.values, before.values, equal_nan=True, atol=0, rtol=0)
    for kind, reward in batch.rewards.items():
        assert torch.equal(reward, before.rewards[kind])


@pytest.mark.parametrize("name", [name for name in NAMES if "values" not in needs(name)])
@given(seed=seeds, reward=st.floats(-(2.0**100), 2.0**100, width=32))
@settings(max_examples=30, deadline=None)
def test_equal_rewards_teach_nothing_and_are_counted(name: str, seed: int, reward: float) -> None:
    """A critic may have expected other than what all got."""
    batch = of_one_reward(random_batch(seed), reward)
    got = estimator(name)(batch)
    assert not (got.policy * batch.loss_mask).any()
    assert got.degenerate.all()


@pytest.mark.parametrize("name", [name for name in NAMES if "groups" in needs(name)])
def test_only_the_groups_of_equal_rewards_are_degenerate(name: str) -> None:
    batch = batch_of([0.1] * 3 + [1, 2], [0, 0, 0, 1, 1], [2] * 5)
    thoughts = torch.tensor([[i, 2, 2] for i in range(5)])
    got = estimator(name)(replace(batch, path=torch.zeros(5, 1, dtype=torch.long), cut=thoughts))
    assert got.policy[:3].abs().max() < 1e-6
    assert got.policy[3:].abs().min() > 0.1
    assert got.degenerate.tolist() == [True, True, True, False, False]


@every_estimator
@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_the_order_of_completions_does_not_matter(name: str, seed: int) -> None:
    batch = random_batch(seed)
    order = torch.randperm(len(batch.group), generator=torch.Generator().manual_seed(seed))
    shuffled, got = rows(batch, order.tolist()), estimator(name)(batch)
    returns = None if got.returns is None else got.returns[order]
    assert_same(shuffled, estimator(name)(shuffled), Advantages(got.policy[order], got.degenerate[order], returns))


@every_estimator
@given(seed=seeds, columns=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_padding_does_not_matter(name: str, seed: int, columns: int) -> None:
    batch = random_batch(seed)
    assert_same(batch, estimator(name)(padded(batch, columns)), estimator(name)(batch))


@pytest.mark.parametrize("name", sorted({*OVER_THE_BATCH, *BY_ITSELF} - {"gpg"}))
@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_those_that_whiten_do_so_over_the_tokens_in_the_loss(name: str, seed: int) -> None:
    """Whitening them again changes nothing."""
    batch = random_batch(seed)
    policy = estimator(name)(batch).policy * batch.loss_mask
    torch.testing.assert_close(whitened(policy, batch.loss_mask), policy, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OVER_THE_BATCH])
@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_groups_do_not_touch_each_other(name: str, seed: int) -> None:
    """Groups together, interleaved, give what each gives alone."""
    batch, options = random_batch(seed), BY_ITSELF.get(name, {})
    together = estimator(name)(batch, **options)
    for group in batch.group.unique():
        members = (batch.group == group).nonzero()[:, 0]
        alone = rows(batch, members.tolist())
        returns = None if together.returns is None else together.returns[members]
        expected = Advantages(together.policy[members], together.degenerate[members], returns)
        assert_same(alone, estimator(name)(alone, **options), expected)


@pytest.mark.parametrize("name", sorted({*OVER_THE_BATCH, *BY_ITSELF}))
def test_those_over_the_batch_see_other_groups(name: str) -> None:
    """Which is why they are excepted above: completions of another problem, of one reward far off, change these ones'."""
    batch = batch_of([1, 0, 7, 7], [0, 0, 1, 1], [2, 1, 3, 3])
    path, values = torch.zeros(4, 1, dtype=torch.long), torch.zeros(4, 3)
    batch = replace(batch, path=path, values=values)
    alone = estimator(name)(rows(batch, [0, 1])).policy
    assert (estimator(name)(batch).policy[:2] - alone).abs()[batch.loss_mask[:2] == 1].min() > 0.01


@every_estimator
@pytest.mark.parametrize("length", [1, 3])
def test_a_group_of_one(name: str, length: int) -> None:
    """It is refused before anything loads by those that compare the completions of a problem; which give 0 if they meet it."""
    setting = ["algorithm.critic={}"] if "values" in needs(name) else []
    recipe = load(["quickstart", "rollout.samples=1", f"algorithm.advantage={name}", *setting]).recipe
    batch = replace(
        batch_of([0.7], [0], [length]),
        greedy=torch.zeros(1),
        path=torch.zeros(1, 1, dtype=torch.long),
        cut=torch.zeros(1, 3, dtype=torch.long),
        values=torch.zeros(1, length),
    )
    if "groups" in needs(name):
        with pytest.raises(UserError, match=r"set rollout\.samples >= 2"):
            algorithm.advantage(recipe)
        if name not in NOT_OF_ONE:
            assert not estimator(name)(batch).policy.any()
    else:
        assert torch.isfinite(algorithm.advantage(recipe)(batch).policy).all()


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=8))
def test_advantages_of_a_group_are_finite_and_sum_to_zero(rewards: list[float]) -> None:
    """Whatever the rewards; summed in double precision, relative to their size."""
    batch = batch_of(rewards, [0] * len(rewards), [1] * len(rewards))
    for advantage in (grpo, rloo, dr_grpo, opo, gpg):
        policy = advantage(batch).policy[:, 0].double()
        assert torch.isfinite(policy).all()
        assert abs(policy.sum()) <= 1e-5 * (1 + policy.abs().sum())


@given(seed=seeds, share=st.floats(0, 1), scale=st.sampled_from([1e-2, 1, 1e20]))
@settings(deadline=None)
def test_whitening_gives_mean_0_and_variance_1_over_the_tokens_in_the_mask(seed: int, share: float, scale: float) -> None:
    """And 0 where there are fewer than two of them; what stands outside is not read."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(4, 6, generator=generator) < share).float()
    values = scale * (5 + torch.randn(4, 6, generator=generator))
    got = whitened(values.masked_fill(mask == 0, torch.nan), mask)
    inside = got[mask.bool()].double()
    assert not got[mask == 0].any()
    if len(inside) < 2:
        assert not got.any()
    else:
        variance = values[mask.bool()].double().var().item()
        assert inside.mean().item() == pytest.approx(0, abs=1e-5)
        assert inside.var().item() == pytest.approx(variance / (variance + 1e-8), abs=1e-5)


# -- by name -------------------------------------------------------------------------------------------------------------


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'rloo'"):
        algorithm.advantage(load(["quickstart", "algorithm.advantage=rlo"]).recipe)
    with pytest.raises(UserError, match="no option 'epsilom'; did you mean 'epsilon'"):
        algorithm.advantage(load(["quickstart", "algorithm.advantage={name: grpo, epsilom: 1}"]).recipe)


def test_a_file_of_the_user_plugs_in_by_import_path() -> None:
    bound = algorithm.advantage(load(["quickstart", "algorithm.advantage=trainers.advantages.rloo:rloo"]).recipe)
    assert bound.func is rloo
