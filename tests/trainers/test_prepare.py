"""What happens between grading and learning, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlcore.batch import Advantages, rows
from rlcore.errors import UserError
from trainers.advantages.dr_grpo import dr_grpo
from trainers.prepare import Prepare


def test_the_reference_sees_what_was_chosen_and_masked_and_is_asked_before_the_advantage(make_batch: Callable) -> None:
    """Rewards may come to depend on the reference, and advantages depend on rewards."""
    graded = make_batch([1, 0, 1, 0], [0, 0, 1, 1], [3, 2, 4, 1])
    graded = replace(graded, truncated=torch.tensor([False, True, False, False]))
    seen: list[tuple[str, list[float]]] = []

    class Watched:
        def logprobs(self, batch: Any) -> torch.Tensor:
            seen.append(("reference", batch.loss_mask.sum(1).tolist()))
            return torch.full(batch.tokens.shape, -2.0)

    def advantage(batch: Any) -> Any:
        seen.append(("advantage", batch.loss_mask.sum(1).tolist()))
        return dr_grpo(batch)

    batch, _ = Prepare(lambda batch: rows(batch, [0, 1]), advantage, Watched(), mask_truncated=True)(graded)
    assert seen == [("reference", [3, 0]), ("advantage", [3, 0])]
    assert batch.reference_logprobs is not None
    assert batch.reference_logprobs.unique().tolist() == [-2]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda batch: batch.totals, r"the advantage has shape \(2,\): it is one number per token, \(2, 3\)"),
        (lambda batch: batch.tokens / 0, "an advantage is not finite"),
    ],
)
def test_an_advantage_that_is_none_is_refused(policy: Callable, message: str, make_batch: Callable) -> None:
    def advantage(batch: Any) -> Advantages:
        return Advantages(policy(batch), torch.zeros(2, dtype=torch.bool))

    prepare = Prepare(lambda batch: batch, advantage, None, mask_truncated=False)
    with pytest.raises(UserError, match=message):
        prepare(make_batch([1, 0], [0, 0], [3, 2]))


def test_what_is_no_advantages_is_refused(make_batch: Callable) -> None:
    prepare: Any = Prepare(lambda batch: batch, lambda batch: batch.totals, None, mask_truncated=False)  # type: ignore[arg-type, return-value]
    with pytest.raises(UserError, match=r"the advantage returned a Tensor: return rlcore.batch.Advantages"):
        prepare(make_batch([1, 0], [0, 0], [3, 2]))


def test_a_step_whose_completions_are_all_masked_teaches_nothing(make_batch: Callable) -> None:
    graded = replace(make_batch([1, 0], [0, 0], [3, 2]), truncated=torch.tensor([True, True]))
    batch, metrics = Prepare(lambda batch: batch, dr_grpo, None, mask_truncated=True)(graded)
    assert metrics["groups/trained"].value == 0
    assert len(batch.advantages) == 0
