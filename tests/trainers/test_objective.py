"""Losses and aggregation, values and gradients against closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlcore.recipe.schema import KL
from trainers.losses.ppo_clip import ppo_clip
from trainers.losses.ppo_clip_sequence import ppo_clip_sequence
from trainers.objective import LossInputs, Objective, token_weights


def inputs_of(logprobs: torch.Tensor, advantages: torch.Tensor, old: torch.Tensor | None = None) -> LossInputs:
    zeros = torch.zeros_like(logprobs)
    old = logprobs.detach() if old is None else old
    return LossInputs(logprobs, zeros, old, old, None, advantages, torch.ones_like(logprobs))


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # on-policy: −A
        (1.1, 2.0, -2.2, -2.2),  # inside the clip range: −A·r
        (1.5, 2.0, -2.4, 0.0),  # above it, A > 0: clipped, no gradient
        (1.5, -2.0, 3.0, 3.0),  # above it, A < 0: the pessimistic branch keeps its gradient
        (0.5, 2.0, -1.0, -1.0),  # below it, A > 0: unclipped
        (0.5, -2.0, 1.6, 0.0),  # below it, A < 0: clipped
    ],
)
def test_ppo_clip_value_and_gradient(ratio: float, advantage: float, value: float, gradient: float) -> None:
    """d/d log π of −A·r is −A·r; zero where the clip is active."""
    logprobs = torch.tensor([[ratio]]).log().requires_grad_()
    loss = ppo_clip(inputs_of(logprobs, torch.tensor([[advantage]]), old=torch.zeros(1, 1)), clip_low=0.2, clip_high=0.2)
    loss.per_token.sum().backward()
    assert loss.per_token.item() == pytest.approx(value, abs=1e-5)
    assert logprobs.grad.item() == pytest.approx(gradient, abs=1e-5)


def test_clip_higher_moves_the_upper_bound_only() -> None:
    logprobs = torch.tensor([[1.25, 0.7]]).log()
    advantages = torch.tensor([[1.0, -1.0]])
    loss = ppo_clip(inputs_of(logprobs, advantages, old=torch.zeros(1, 2)), clip_low=0.2, clip_high=0.28)
    assert loss.per_token[0].tolist() == pytest.approx([-1.25, 0.8], abs=1e-6)
    assert loss.metrics["clip_fraction"].value == 0.5


@pytest.mark.parametrize(("clip_high", "value", "gradient"), [(0.5, -2.64, -2.64), (0.28, -2.56, 0.0)])
def test_a_completions_ratio_is_the_product_of_its_tokens(clip_high: float, value: float, gradient: float) -> None:
    """Tokens of ratios 1.1 and 1.2, and one outside the loss; A = 2: −2 · 1.32 for the completion, or clipped as a whole."""
    logprobs = torch.tensor([[1.1, 1.2, 7.0]]).log().requires_grad_()
    inputs = inputs_of(logprobs, torch.full((1, 3), 2.0), old=torch.zeros(1, 3))
    inputs = replace(inputs, loss_mask=torch.tensor([[1.0, 1, 0]]))
    loss = ppo_clip_sequence(inputs, clip_high=clip_high)
    total = (loss.per_token * token_weights(inputs.loss_mask, "sequence_mean", 10)).sum()
    total.backward()
    assert total.item() == pytest.approx(value, abs=1e-5)
    assert logprobs.grad[0].tolist() == pytest.approx([gradient, gradient, 0], abs=1e-5)


def test_objective_adds_the_kl_penalty_to_the_policy_loss() -> None:
    logprobs = torch.tensor([[-1.0]], requires_grad=True)
    inputs = replace(inputs_of(logprobs, torch.tensor([[2.0]])), reference_logprobs=torch.tensor([[-1.5]]))
    loss = Objective(ppo_clip, kl=KL(estimator="k2", coefficient=0.1))(inputs)
    loss.per_token.sum().backward()
    assert loss.per_token.item() == pytest.approx(-2.0 + 0.1 * 0.125)
    assert logprobs.grad.item() == pytest.approx(-2.0 + 0.1 * 0.5)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("token_mean", [[1 / 4, 1 / 4, 1 / 4], [1 / 4, 0, 0]]),
        ("sequence_mean", [[1 / 6, 1 / 6, 1 / 6], [1 / 2, 0, 0]]),
        ("constant", [[1 / 20, 1 / 20, 1 / 20], [1 / 20, 0, 0]]),
    ],
)
def test_token_weights(aggregate: str, expected: list[list[float]]) -> None:
    """Two completions of 3 and 1 tokens; the constant length is 10."""
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    torch.testing.assert_close(token_weights(mask, aggregate, 10), torch.tensor(expected))  # type: ignore[arg-type]


def test_completions_outside_the_loss_do_not_count_in_the_denominators() -> None:
    """What mask_truncated does to sequence_mean: the mean is over the completions that are left."""
    mask = torch.tensor([[1.0, 1], [0, 0], [1, 1]])
    weights = token_weights(mask, "sequence_mean", 10)
    assert weights.sum(1).tolist() == pytest.approx([0.5, 0, 0.5])
    assert torch.isfinite(token_weights(torch.zeros(2, 3), "token_mean", 10)).all()
