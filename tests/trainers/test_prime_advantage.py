"""PRIME's advantage against values worked out for two completions of one problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from rlcore.batch import GradedBatch
from tests.conftest import batch_of
from trainers.advantages.prime import prime
from trainers.advantages.rloo import rloo


@pytest.fixture
def batch() -> GradedBatch:
    """A right answer whose two tokens earn 0.1 and 0.3, and a wrong one whose token earns −0.2."""
    earned = torch.tensor([[0.1, 0.3], [-0.2, 0]])
    outcome = batch_of([1, 0], [0, 0], [2, 1])
    return replace(outcome, rewards=outcome.rewards | {"prime": earned}, process=("prime",))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1.8, 1.5, -1.4]),  # 0.1 + 0.2 + 0.3 + 0.2, 0.3 + 0.2 and −0.2 − 0.2 beside ±1
        ({"gamma": 0.5}, [1.55, 1.5, -1.4]),  # 0.3 + 0.5 · 0.5
        ({"scale_to": 4}, [9, 6, -5]),  # ten times the rewards of tokens, whose largest sum was 0.4
    ],
)
def test_worked_values(batch: GradedBatch, options: dict[str, float], expected: list[float]) -> None:
    found = prime(batch, **options)
    assert found.policy[batch.loss_mask.bool()].tolist() == pytest.approx(expected)
    assert not found.degenerate.any()


def test_whitening(batch: GradedBatch) -> None:
    """1.8, 1.5 and −1.4 less their mean, over their standard deviation."""
    mean, deviation = 1.9 / 3, (sum((a - 1.9 / 3) ** 2 for a in (1.8, 1.5, -1.4)) / 2) ** 0.5
    found = prime(batch, whiten=True).policy[batch.loss_mask.bool()].tolist()
    assert found == pytest.approx([(a - mean) / deviation for a in (1.8, 1.5, -1.4)])


def test_tokens_outside_of_the_loss_have_no_baseline(batch: GradedBatch) -> None:
    """The first token was forced: the second is all there is of its completion, whose reward per token is then 0.4."""
    batch.loss_mask[0, 0] = 0
    found = prime(batch).policy
    assert (found[0, 1].item(), found[1, 0].item()) == pytest.approx((1 + 0.3 + 0.2, -1 - 0.2 - 0.4))


def test_without_rewards_of_tokens_it_is_rloo(make_batch: Callable) -> None:
    batch = make_batch([1, 0, 1, 1], [0, 0, 1, 1], [3, 1, 2, 2])
    for scale in (None, 5):
        found = prime(batch, scale_to=scale)
        assert torch.equal(found.policy, rloo(batch).policy)
        assert found.degenerate.tolist() == [False, False, True, True]
