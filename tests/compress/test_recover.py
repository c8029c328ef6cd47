"""Recovery and tuning: they lower the distance to the dense model, and touch only what they may."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from compress.calibration import Calibration
from compress.formats.codebook import Codebook
from compress.formats.patched import Patched
from compress.formats.sparse import Sparse
from compress.recover.codewords import _books
from rlcore.errors import UserError

PRUNED = ("magnitude", {"pattern": [2, 8]})


def distance(model: torch.nn.Module, calibration: Calibration) -> float:
    with torch.no_grad():
        wanted, found = (m(calibration.rows).logits.log_softmax(-1) for m in (calibration.dense(), model))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


@pytest.mark.parametrize(
    ("before", "method", "options"),
    [
        ([PRUNED], "mask_lora", {"steps": 40, "rank": 4, "learning_rate": 5e-3}),
        ([PRUNED, ("mvq", {"codes": 16})], "codewords", {"steps": 40, "learning_rate": 5e-3}),
        ([("vq", {"codes": 16, "shared": True})], "codewords", {"steps": 40, "learning_rate": 5e-3}),
        ([("rtn", {"bits": 2, "run": 64})], "prequant", {"steps": 40, "share": 0.02, "learning_rate": 5e-3}),
    ],
    ids=["mask_lora", "codewords", "shared_codewords", "prequant"],
)
def test_it_comes_nearer_to_the_dense_model(
    done: Callable, calibration: Calibration, before: list, method: str, options: dict
) -> None:
    near, far = done(*before, (method, options)), done(*before)
    assert distance(near.model, calibration) < 0.8 * distance(far.model, calibration)
    for name, held in near.held.items():  # what it computes with is what is kept
        assert torch.equal(near.model.get_parameter(name), held.decode())


def test_recovery_keeps_the_mask_and_weights_of_zero_that_it_keeps_can_learn(done: Callable) -> None:
    pruned, recovered = done(PRUNED), done(PRUNED, ("mask_lora", {"steps": 5, "learning_rate": 1e-2}))
    for name, held in pruned.held.items():
        assert isinstance(held, Sparse)
        assert torch.equal(recovered.held[name].mask(), held.mask())
        assert not torch.equal(recovered.held[name].decode(), held.decode())


def test_codewords_learn_and_assignments_do_not(done: Callable) -> None:
    clustered, tuned = (
        done(("vq", {"codes": 16}), *more) for more in ([], [("codewords", {"steps": 5, "learning_rate": 1e-2})])
    )
    for name, held in clustered.held.items():
        assert torch.equal(tuned.held[name].assignments, held.assignments)
        assert not torch.equal(tuned.held[name].codewords, held.codewords)


def test_the_gradient_of_a_codeword_is_the_mean_over_the_weights_it_stands_for(done: Callable) -> None:
    """Autograd's sum over the members, divided entry by entry by how many are kept."""
    model = done(PRUNED, ("mvq", {"codes": 8, "width": 8}))
    name, held = next(iter(model.held.items()))
    assert isinstance(held, Codebook)
    book = _books({name: held})[id(held.codewords)]
    wanted = torch.randn(held.shape, generator=torch.Generator().manual_seed(0))
    (held.rebuild(book(), held.assigned(), held.mask()) * wanted).sum().backward()
    runs, mask, assigned = wanted.view(-1, 8), held.mask(), held.assigned()
    assert mask is not None
    mine = (assigned == 3)[:, None] & mask
    expected = (runs * mine).sum(0) / mine.sum(0).clamp_min(1)
    torch.testing.assert_close(book.master.grad[3], expected)


def test_prequant_moves_the_chosen_weights_alone(done: Callable) -> None:
    options = {"share": 0.01, "score": "error", "steps": 5, "learning_rate": 1e-2}
    rounded, tuned = (done(("rtn", {"bits": 3, "run": 64}), *more) for more in ([], [("prequant", options)]))
    for name, held in tuned.held.items():
        assert isinstance(held, Patched)
        moved = (held.decode() != rounded.held[name].decode()).view(-1).nonzero()[:, 0]
        assert len(held.places) == round(0.01 * held.shape[0] * held.shape[1])
        assert set(moved.tolist()) <= set(held.places.tolist())
        assert len(moved) > 0.8 * len(held.places)
    grown = tuned.size().held - rounded.size().held
    assert grown == 48 * sum(len(held.places) for held in tuned.held.values())


@pytest.mark.parametrize(
    ("method", "said"), [("mask_lora", "nothing is"), ("codewords", "there are none"), ("prequant", "nothing is")]
)
def test_there_must_be_something_to_recover(done: Callable, method: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        done((method, {}))
