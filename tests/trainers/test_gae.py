"""GAE against closed forms and against sums written out, on completions of which some tokens are not in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlcore.batch import GradedBatch
from tests.conftest import batch_of
from trainers.advantages.gae import gae
from trainers.advantages.length_adaptive_gae import length_adaptive_gae
from trainers.returns import rewards_to_go
from trainers.whiten import whitened


def valued(
    rewards: Sequence[Sequence[float]], values: Sequence[Sequence[float]], mask: Sequence[Sequence[float]] | None = None
) -> GradedBatch:
    """Completions of one length, what each token earns, and what the critic expects from it on."""
    batch = batch_of([0.0] * len(rewards), range(len(rewards)), [len(rewards[0])] * len(rewards))
    loss_mask = batch.loss_mask if mask is None else torch.tensor(mask, dtype=torch.float32)
    return replace(batch, rewards={"steps": torch.tensor(rewards)}, values=torch.tensor(values), loss_mask=loss_mask)


def written_out(rewards: list[float], values: list[float], mask: list[bool], gamma: float, lambda_: float) -> dict[int, float]:
    """A_k = Σ_{j ≥ k} (γλ)^{j−k} δ_j of one completion, by the position of decision k."""
    decisions = [t for t, inside in enumerate(mask) if inside]
    ends = [*decisions, len(mask)][1:]
    earned = [sum(rewards[start:end]) for start, end in zip(decisions, ends, strict=True)]
    expected = [*(values[t] for t in decisions), 0.0]
    errors = [r + gamma * expected[k + 1] - expected[k] for k, r in enumerate(earned)]
    return {t: sum((gamma * lambda_) ** (j - k) * errors[j] for j in range(k, len(errors))) for k, t in enumerate(decisions)}


def test_the_worked_values() -> None:
    """δ = 0.1, 0.2, 0.2, summed backwards with λ = 0.5; the critic is to predict the reward, made with λ = 1."""
    batch = valued([[0.0, 0, 1]], [[0.5, 0.6, 0.8]])
    got = gae(batch, lambda_policy=0.5, whiten=False)
    assert got.policy[0].tolist() == pytest.approx([0.25, 0.3, 0.2])
    assert got.returns is not None
    assert got.returns[0].tolist() == pytest.approx([1, 1, 1])
    assert not got.degenerate.any()


def test_gamma_discounts_the_next_value_and_what_comes_after_it() -> None:
    """γ = 0.5, λ = 0.5: δ = −0.2, −0.2, 0.2, each a quarter of the next added; R = A + V, made with λ = 1: 0.25, 0.5, 1."""
    got = gae(valued([[0.0, 0, 1]], [[0.5, 0.6, 0.8]]), gamma=0.5, lambda_policy=0.5, whiten=False)
    assert got.policy[0].tolist() == pytest.approx([-0.2 + (-0.2 + 0.2 / 4) / 4, -0.2 + 0.2 / 4, 0.2])
    assert got.returns is not None
    assert got.returns[0].tolist() == pytest.approx([0.25, 0.5, 1])


def test_a_tool_between_two_decisions_is_skipped() -> None:
    """Positions 1 and 3 are decisions, and 0, 2 and 4 are not: the first earns 2 + 3 and the second 4 + 5; the 1 before them is
    nobody's. With γ = 0.5 the second's 9 is worth 4.5 at the first."""
    batch = valued([[1.0, 2, 3, 4, 5]], [[torch.nan, 0.25, torch.nan, 0.75, torch.nan]], [[0.0, 1, 0, 1, 0]])
    assert rewards_to_go(batch, gamma=0.5)[0].tolist() == [0, 9.5, 0, 9, 0]
    got = gae(batch, lambda_policy=0.0, whiten=False)
    assert got.policy[0].tolist() == [0, 5 + 0.75 - 0.25, 0, 9 - 0.75, 0]
    assert got.returns is not None
    assert got.returns[0].tolist() == [0, 14, 0, 9, 0]


numbers = st.floats(-2, 2, width=32)


@st.composite
def completions(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]], list[list[bool]]]:
    """Rewards, values and mask of up to three completions of one length."""
    width = draw(st.integers(1, 6))

    def table(cell: st.SearchStrategy) -> list[list]:
        return [draw(st.lists(cell, min_size=width, max_size=width)) for _ in range(count)]

    count = draw(st.integers(1, 3))
    return table(numbers), table(numbers), table(st.booleans())


@given(completions(), st.floats(0, 1), st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(0, 1))
@settings(deadline=None)
def test_it_is_the_sum_written_out(
    drawn: tuple[list, list, list], gamma: float, lambda_policy: list[float], lambda_critic: float
) -> None:
    """Random masks, a λ_policy each; what stands outside of the loss is 0. Without whitening and, whitened, after it."""
    rewards, values, mask = drawn
    batch = valued(rewards, values, [[float(m) for m in row] for row in mask])
    lambdas = torch.tensor(lambda_policy[: len(rewards)], dtype=torch.float64)
    got = gae(batch, gamma=gamma, lambda_policy=lambdas, lambda_critic=lambda_critic, whiten=False)
    policy, returns = torch.zeros_like(batch.loss_mask), torch.zeros_like(batch.loss_mask)
    for i, row in enumerate(zip(rewards, values, mask, strict=True)):
        for t, advantage in written_out(*row, gamma, lambda_policy[i]).items():
            policy[i, t] = advantage
        for t, advantage in written_out(*row, gamma, lambda_critic).items():
            returns[i, t] = advantage + values[i][t]
    torch.testing.assert_close(got.policy, policy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.returns, returns, atol=1e-5, rtol=1e-5)
    white = gae(batch, gamma=gamma, lambda_policy=lambdas, lambda_critic=lambda_critic)
    torch.testing.assert_close(white.policy, whitened(got.policy, batch.loss_mask), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(white.returns, got.returns)


@given(completions(), st.floats(0, 1))
@settings(deadline=None)
def test_lambda_1_is_the_return_less_the_value_and_lambda_0_the_td_error(drawn: tuple[list, list, list], gamma: float) -> None:
    """Nothing masked, both in closed form over the whole rectangle."""
    rewards, values, _ = drawn
    batch = valued(rewards, values)
    r, v = torch.tensor(rewards).double(), torch.tensor(values).double()
    steps = torch.arange(r.shape[1])
    ahead = (steps[None, :] - steps[:, None]).clamp(min=0)
    weight = (gamma**ahead).double().triu()  # row t, column s: γ^{s−t} where s ≥ t
    following = torch.cat([v[:, 1:], torch.zeros(len(v), 1)], 1)

    def policy(lambda_: float) -> Tensor:
        return gae(batch, gamma=gamma, lambda_policy=lambda_, whiten=False).policy.double()

    torch.testing.assert_close(policy(1.0), r @ weight.T - v, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(policy(0.0), r + gamma * following - v, atol=1e-5, rtol=1e-5)


def test_policy_and_critic_are_decoupled() -> None:
    """Each λ moves its own result alone."""
    batch = valued([[0.5, 0, 1]], [[0.5, 0.6, 0.9]])
    usual, policy, critic = gae(batch), gae(batch, lambda_policy=0.5), gae(batch, lambda_critic=0.5)
    assert usual.returns is not None
    assert torch.equal(policy.returns, usual.returns)
    assert torch.equal(critic.policy, usual.policy)
    assert (policy.policy - usual.policy).abs().max() > 0.01
    assert (critic.returns - usual.returns).abs().max() > 0.1


# -- length-adaptive -----------------------------------------------------------------------------------------------------


def test_lambda_grows_with_the_length() -> None:
    """VAPO's λ at α = 0.05. Where the last token alone earns anything and nothing is expected, the one before it gets λ."""
    lengths = [100, 1000, 10000, 20, 5]
    batch = batch_of([1.0] * 5, range(5), lengths)
    batch = replace(batch, values=torch.zeros(batch.tokens.shape))
    got = length_adaptive_gae(batch, whiten=False)
    found = [got.policy[i, length - 2].item() for i, length in enumerate(lengths)]
    assert found == pytest.approx([0.8, 0.98, 0.998, 0, 0])
    assert got.returns is not None
    assert got.returns[0, :100].tolist() == [1] * 100  # λ_critic = 1


def test_the_length_is_that_in_the_loss_and_the_rest_is_gae() -> None:
    """Four of six tokens: with α = 0.5, λ = 1 − 1/2."""
    batch = valued([[0.0, 1, 0, 2, 0, 1]] * 2, [[0.3, 0.1, 0.4, 0.1, 0.5, 0.9]] * 2, [[0.0, 1, 1, 0, 1, 1]] * 2)
    for whiten in (True, False):
        got = length_adaptive_gae(batch, alpha=0.5, gamma=0.9, whiten=whiten)
        expected = gae(batch, lambda_policy=0.5, lambda_critic=1.0, gamma=0.9, whiten=whiten)
        torch.testing.assert_close(got.policy, expected.policy)
        torch.testing.assert_close(got.returns, expected.returns)
