"""The graded batch: every field fits when it is made, and none is overlooked when it is cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch

from rlcore.batch import GradedBatch, rows


@pytest.fixture
def batch(make_batch: Callable) -> GradedBatch:
    return make_batch([1, 0, 1], [0, 0, 1], [3, 1, 2])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_ids", [(1,)] * 2),
        ("truncated", torch.zeros(4, dtype=torch.bool)),
        ("group", torch.zeros(3, 1, dtype=torch.long)),
        ("accuracy", torch.zeros(2)),
        ("versions", torch.zeros(3, 2, dtype=torch.long)),
    ],
)
def test_a_field_that_does_not_fit_is_named(batch: GradedBatch, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"GradedBatch\.{field} "):
        replace(batch, **{field: value})


def test_rows_cuts_every_field(batch: GradedBatch) -> None:
    batch = replace(batch, prompt_ids=[(1,), (2,), (3,)], accuracy=torch.tensor([0.1, 0.2, 0.3]))
    cut = rows(batch, [2, 0])
    assert cut.prompt_ids == [(3,), (1,)]
    assert cut.sampling == batch.sampling
    torch.testing.assert_close(cut.rewards["answer"], batch.rewards["answer"][[2, 0]])
    for field in fields(batch):
        whole = getattr(batch, field.name)
        if isinstance(whole, torch.Tensor):
            assert torch.equal(getattr(cut, field.name), whole[[2, 0]])
    assert rows(replace(batch, accuracy=None), [1]).accuracy is None


def test_rows_refuses_a_field_that_it_does_not_know(batch: GradedBatch) -> None:
    """Passed through, a list with an entry for each completion would no longer belong to the rows beside it."""

    @dataclass(frozen=True)
    class Longer(GradedBatch):
        step_ends: Any = None

    longer = Longer(**vars(batch), step_ends=[[1], [], [2]])
    with pytest.raises(TypeError, match=r"does not know how to cut GradedBatch\.step_ends"):
        rows(longer, [0])
