"""PURE's advantage against the values worked out for two completions of one problem."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rewards.credit import paid
from rlcore.types import Sampling
from tests.conftest import batch_of
from trainers.advantages.pure import pure
from trainers.advantages.rloo import rloo


def test_worked_values() -> None:
    """r = 0.9, −0.2, 0.5 at tokens 1, 3, 5 of six, and 0.8, 0.6 at tokens 1, 3 of four; T = 0.1, N = 6."""
    first = paid("min", [0.95, 0.4, 0.75], temperature=0.1, threshold=0)
    second = paid("min", [0.9, 0.8], temperature=0.1, threshold=0)
    rewards = torch.zeros(2, 6)
    rewards[0, [1, 3, 5]] = torch.tensor(first)
    rewards[1, [1, 3]] = torch.tensor(second)
    batch = replace(
        batch_of([0, 0], [0, 0], [6, 4]),
        rewards={"process": rewards},
        process=("process",),
        sampling=Sampling(max_new_tokens=6),
    )
    expected = [
        [-0.58345, -0.58345, -0.58347, -0.58347, -0.38365, -0.38365],
        [0.75659, 0.75659, 0.66123, 0.66123],
    ]
    found = pure(batch)
    for row, wanted in zip(found.policy.tolist(), expected, strict=True):
        assert row[: len(wanted)] == pytest.approx(wanted, abs=1e-5)
    assert not found.degenerate.any()


def test_answers_are_compared_by_the_plain_mean() -> None:
    """Beside a process reward, right and wrong answers of any length are 1 apart on either side, as with RLOO."""
    batch = batch_of([1, 0], [0, 0], [6, 4])
    both = replace(batch, rewards=batch.rewards | {"process": torch.zeros(2, 6)}, process=("process",))
    assert pure(both).policy.equal(rloo(batch).policy)
