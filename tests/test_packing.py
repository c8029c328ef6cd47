"""Sequences packed in rows: where they stand, what they see, and that a model says of them what it says of each alone."""

from __future__ import annotations

import random

import pytest
import torch

from rlcore.models import ModelSpec
from rlcore.packing import first_fit, pack

CPU = torch.device("cpu")
MIXED = [(3, 4, 5, 6, 7, 8, 9, 10), (11, 12), (13, 14, 15, 16, 17), (18,), (19, 20, 21), (22, 23, 24, 25, 26, 27, 28, 29)]


def test_rows_by_hand() -> None:
    """Of 8 tokens: 8, 8 again, 5 with 3, and 2 with 1."""
    assert first_fit([len(ids) for ids in MIXED]) == [[0], [5], [2, 4], [1, 3]]
    packed = pack(MIXED, CPU)
    assert packed.ids[2:].tolist() == [[13, 14, 15, 16, 17, 19, 20, 21], [11, 12, 18, 0, 0, 0, 0, 0]]
    assert packed.positions[2:].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert (packed.row.tolist(), packed.start.tolist()) == ([0, 3, 2, 3, 2, 1], [0, 0, 0, 2, 5, 0])


@pytest.mark.parametrize("seed", range(5))
def test_rows_hold_every_sequence_once_and_are_as_few_as_first_fit_promises(seed: int) -> None:
    lengths = [min(512, int(random.Random(seed * 100 + i).lognormvariate(4, 1)) + 1) for i in range(100)]
    rows = first_fit(lengths)
    assert sorted(i for row in rows for i in row) == list(range(100))
    assert max(sum(lengths[i] for i in row) for row in rows) == max(lengths)
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // max(lengths)) + 1


def test_sequences_of_one_length_are_not_packed() -> None:
    assert first_fit([7] * 4) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("sequences", [MIXED, [(3, 4, 5), (6, 7)]], ids=["packed", "one a row"])
def test_a_token_sees_those_before_it_in_its_sequence(sequences: list[tuple[int, ...]]) -> None:
    """Where a row has one sequence, what stands in none may see it, and is not seen."""
    packed = pack(sequences, CPU)
    mask = packed.mask[:, 0]
    for ids, row, start in zip(sequences, packed.row, packed.start, strict=True):
        for at in range(len(ids)):
            seen = mask[row, start + at].nonzero()[:, 0].tolist()
            assert seen == list(range(start, start + at + 1))
    assert mask.any(-1).all()


def test_states_and_gradients_are_those_of_each_sequence_alone(tiny_spec: ModelSpec) -> None:
    model = tiny_spec.load().get_decoder()
    packed = pack(MIXED, CPU)
    hidden = model(packed.ids, position_ids=packed.positions, attention_mask=packed.mask, use_cache=False).last_hidden_state
    together = [hidden[r, s : s + n] for r, s, n in zip(packed.row, packed.start, packed.length, strict=True)]
    alone = [model(torch.tensor([ids]), use_cache=False).last_hidden_state[0] for ids in MIXED]
    torch.testing.assert_close(torch.cat(together), torch.cat(alone), atol=1e-5, rtol=0)
    gradients = [
        torch.autograd.grad(sum((states**3).sum() for states in each), list(model.parameters())) for each in (together, alone)
    ]
    for packs, lone in zip(*gradients, strict=True):
        torch.testing.assert_close(packs, lone, atol=1e-4, rtol=1e-4)
