"""Weights that change, held anew at every sync: what comes out again, and what of a small change is seen."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from compress import held
from compress.codec import Codec, Fitted, Named, bound, codec, trial
from compress.formats.codebook import Codebook
from compress.packing import unpack
from rlcore.errors import UserError
from rlcore.models import ModelSpec, without_weights

METHODS: list[list[Named]] = [
    [("rtn", {"bits": 8, "run": 0})],
    [("rtn", {"bits": 4, "run": 32})],
    [("nf4", {})],
    [("cube_root", {"bits": 6, "run": 0})],
    [("clipped", {"bits": 4, "run": 32})],
    [("magnitude", {"pattern": [2, 4]})],
    [("magnitude", {"pattern": [2, 4]}), ("rtn", {"bits": 8, "run": 0})],
    [("vq", {"codes": 32, "width": 4})],
    [("magnitude", {"pattern": [4, 8]}), ("mvq", {"codes": 32})],
]
MVQ = METHODS[-1]
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def weights(tiny_spec: ModelSpec) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in tiny_spec.load().named_parameters()}


@pytest.fixture
def made(tiny_spec: ModelSpec) -> Any:
    def make(methods: list[Named], keep_dense: tuple[str, ...] = ("lm_head",), reassign: int = 0) -> Codec:
        shapes = partial(without_weights, tiny_spec.location)
        return codec(methods, keep_dense, torch.float32, shapes, tiny_spec.load, reassign)

    return make


@pytest.mark.parametrize("methods", METHODS, ids=lambda m: "+".join(name for name, _ in m))
def test_what_was_encoded_is_decoded_by_its_tensors_and_settings_alone(
    made: Any, weights: dict[str, Tensor], tiny_spec: ModelSpec, methods: list[Named]
) -> None:
    """Near the weight, and smaller; as large as a trial on zeros said."""
    codec = made(methods)
    assert "lm_head.weight" not in codec.names
    assert len(codec.names) == 14
    sizes = trial(methods, ["lm_head"], torch.float32, without_weights(tiny_spec.location))
    assert sizes.keys() == codec.names
    for name in codec.names:
        encoded = codec.encode(name, weights[name])
        tensors = dict(encoded.tensors())
        decoded = held.read(encoded.settings(), tensors).decode()
        assert torch.equal(decoded, encoded.decode())
        assert (decoded - weights[name]).norm() < 0.75 * weights[name].norm()
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size < weights[name].nbytes
        assert size == sizes[name]


def test_int8_is_within_half_a_step(made: Any, weights: dict[str, Tensor]) -> None:
    codec = made(METHODS[0])
    error = (codec.encode(Q, weights[Q]).decode() - weights[Q]).abs()
    assert (error <= weights[Q].abs().amax(1, keepdim=True) * (0.5 / 127 + 2**-11)).all()


def test_codewords_are_the_means_of_what_they_stand_for(made: Any, weights: dict[str, Tensor]) -> None:
    """Entry by entry, of the weights that the mask keeps; in bfloat16."""
    book = made(MVQ).encode(Q, weights[Q])
    assert isinstance(book, Codebook)
    assert book.codewords.dtype == torch.bfloat16
    rows, mask, assigned = weights[Q].reshape(-1, 8), book.mask(), book.assigned()
    assert mask is not None
    for code in (0, 7):
        members, kept = rows[assigned == code], mask[assigned == code]
        expected = (members * kept).sum(0) / kept.sum(0).clamp(min=1)
        filled = kept.any(0)
        torch.testing.assert_close(book.codewords[code].float()[filled], expected[filled], rtol=2**-7, atol=1e-6)


def test_what_a_codewords_members_do_together_is_served_and_rounding_serves_none_of_it(
    made: Any, weights: dict[str, Tensor]
) -> None:
    """The members of one codeword move by 1 %: all of them are served so, and none but them; of three bits hardly any."""
    frozen, rounding = made(MVQ), made([("rtn", {"bits": 3, "run": 0})])
    before = frozen.encode(Q, weights[Q])
    moved = weights[Q].clone()
    runs = moved.view(-1, 8)
    runs[before.assigned() == 5] *= 1.01
    changed = (frozen.encode(Q, moved).decode() - before.decode()).view(-1, 8).abs().sum(1) > 0
    assert changed[before.assigned() == 5].all()
    assert not changed[before.assigned() != 5].any()
    rounded = [unpack(rounding.encode(Q, each).codes, 3, each.numel()) for each in (moved, weights[Q])]
    assert (rounded[0] != rounded[1]).float().mean() < 0.002


def test_masks_and_assignments_stay_whatever_the_weights_become(made: Any, weights: dict[str, Tensor]) -> None:
    frozen = made(MVQ)
    before, after = frozen.encode(Q, weights[Q]), frozen.encode(Q, -3 * weights[Q].flip(0))
    assert torch.equal(before.assignments, after.assignments)
    assert torch.equal(before.packed_mask, after.packed_mask)


@pytest.mark.parametrize("methods", METHODS[-2:], ids=["vq", "mvq"])
def test_reassigned_the_copy_of_a_policy_that_moved_far_is_as_near_as_the_first_was(
    made: Any, weights: dict[str, Tensor], methods: list[Named]
) -> None:
    """Frozen it is not; and that it has begun from the first codewords costs little beside clustering anew."""
    moved = -3 * weights[Q].flip(0)

    def error(codec: Codec, weight: Tensor) -> float:
        return float((codec.encode(Q, weight).decode() - weight).norm() / weight.norm())

    frozen, reassigned = made(methods), made(methods, reassign=3)
    first = error(frozen, weights[Q])
    assert error(frozen, moved) > 1.25 * first
    assert error(reassigned, moved) < 1.05 * first
    assert error(made(methods, reassign=1), moved) > error(reassigned, moved)
    assert error(reassigned, weights[Q]) <= first + 1e-3


def test_a_sync_knows_nothing_of_the_one_before(made: Any, weights: dict[str, Tensor]) -> None:
    """So that a run that is resumed sends what it would have sent."""
    once, twice = made(MVQ, reassign=2), made(MVQ, reassign=2)
    twice.encode(Q, -weights[Q])
    for (path, tensor), (_, other) in zip(
        once.encode(Q, weights[Q]).tensors(), twice.encode(Q, weights[Q]).tensors(), strict=True
    ):
        assert torch.equal(tensor, other), path


def test_only_codebooks_are_reassigned(made: Any) -> None:
    with pytest.raises(UserError, match="reassign is for vq and mvq"):
        made(METHODS[0], reassign=1)


def test_a_run_that_is_resumed_fits_the_same(made: Any, weights: dict[str, Tensor]) -> None:
    first, second = made(MVQ), made(MVQ)
    assert isinstance(first, Fitted)
    for name in first.names:
        for (path, tensor), (_, other) in zip(
            first.encode(name, weights[name]).tensors(), second.encode(name, weights[name]).tensors(), strict=True
        ):
            assert torch.equal(tensor, other), (name, path)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([("wanda", {"pattern": [2, 4]})], "wanda looks at calibration text"),
        ([("codewords", {})], "codewords learns from text"),
        ([("rtn", {"activations": 8})], "leave out `activations`"),
        ([("vq", {}), ("rtn", {})], "vq comes last"),
        ([("vq", {"shared": True})], "and `shared`"),
        ([("vq", {"weighted": True})], "vq looks at calibration text"),
        ([("rnt", {})], "there is no 'rnt' in compress; did you mean 'rtn'"),
    ],
)
def test_methods_that_cannot_be_done_at_every_sync_are_refused(methods: list[Named], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bound(methods)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([("rtn", {"bits": 4, "run": 48})], r"proj.weight: rows of 64 weights are no multiple of runs of 48; choose other"),
        ([("mvq", {})], "proj.weight: mvq clusters what an N:M mask left"),
        ([("vq", {"width": 7})], "proj.weight: 64 inputs are no multiple of 7"),
    ],
)
def test_a_matrix_that_a_method_cannot_do_is_named(
    made: Any, weights: dict[str, Tensor], tiny_spec: ModelSpec, methods: list[Named], message: str
) -> None:
    """At a launch, and in a trial before it."""
    with pytest.raises(UserError, match=message):
        trial(methods, [], torch.float32, without_weights(tiny_spec.location))
    with pytest.raises(UserError, match=message):
        made(methods).encode(Q, weights[Q])
