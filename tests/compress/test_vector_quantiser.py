"""VQ and MVQ on a model: which entries count, what is shared, the bits, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from compress.calibration import Calibration
from compress.compressed import CompressedModel
from compress.formats.codebook import Codebook
from compress.formats.sparse import Sparse
from rlcore import plugins
from rlcore.errors import UserError
from rlcore.models import ModelSpec

PRUNED = ("magnitude", {"pattern": [4, 8]})


def test_mvq_is_sparse_where_the_mask_was_and_beats_vq_on_what_is_kept(done: Callable) -> None:
    before = done(PRUNED)
    masked, plain = (done(PRUNED, (name, {"codes": 32, "width": 8})) for name in ("mvq", "vq"))
    lost = {"mvq": 0.0, "vq": 0.0}
    for name, sparse in before.held.items():
        mask = sparse.mask()
        for kind, model in (("mvq", masked), ("vq", plain)):
            lost[kind] += float(((model.held[name].decode() - sparse.decode()) * mask).square().sum())
        assert not masked.held[name].decode()[~mask].any()
        assert plain.held[name].decode()[~mask].any()
    assert lost["mvq"] < 0.7 * lost["vq"]


@pytest.mark.parametrize("axis", ["in", "out"])
def test_bits_are_those_of_the_reference(done: Callable, axis: str) -> None:
    """Assignments ⌈log₂ 32⌉ / 8, mask 7 / 8, and a codebook of 32 · 8 bytes and its scale for each matrix."""
    model = done(("magnitude", {"pattern": [4, 8], "axis": axis}), ("mvq", {"codes": 32, "width": 8, "axis": axis}))
    size = model.size()
    assert size.held == size.weights * (5 + 7) / 8 + len(model.held) * (8 * 32 * 8 + 32)


def test_a_codebook_is_shared_by_the_matrices_of_a_kind(done: Callable) -> None:
    model = done(("vq", {"codes": 16, "width": 8, "shared": True}))
    books = {name: held.codewords for name, held in model.held.items() if isinstance(held, Codebook)}
    assert books["model.layers.0.mlp.up_proj.weight"] is books["model.layers.1.mlp.up_proj.weight"]
    assert books["model.layers.0.mlp.up_proj.weight"] is not books["model.layers.0.mlp.gate_proj.weight"]
    assert len({id(book) for book in books.values()}) == 7
    own = done(("vq", {"codes": 16, "width": 8}))
    assert model.size().held < own.size().held + 16 * sum(held.shape[0] for held in model.held.values())


def test_rows_of_other_scale_share_a_codebook_by_their_scales(tiny_spec: ModelSpec, calibration: Calibration) -> None:
    """A row that is a thousand times smaller is told as well as the others."""
    model, name = tiny_spec.load(), "model.layers.0.mlp.up_proj.weight"
    weight = model.get_parameter(name)
    weight.data[5] *= 1e-3
    dense = weight.detach().clone()
    method = plugins.bind("compress", "vq", {"codes": 64, "width": 4, "shared": True})()
    method.fit(CompressedModel(model, torch.float32), calibration, ["lm_head"])
    lost = (weight.detach() - dense).square().sum(1) / dense.square().sum(1)
    assert lost[5] < 1.5 * lost.median()


def test_weighted_clusters_lose_less_where_inputs_are_large(done: Callable) -> None:
    weighted = done(("vq", {"codes": 16, "width": 8, "weighted": True}))
    plain = done(("vq", {"codes": 16, "width": 8}))
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(weighted.held[name].decode(), plain.held[name].decode())


def test_the_mask_of_a_pruner_is_kept_to_the_bit(done: Callable) -> None:
    pruned = done(PRUNED)
    clustered = done(PRUNED, ("mvq", {"codes": 8, "width": 16}))
    for name, held in pruned.held.items():
        assert isinstance(held, Sparse)
        assert torch.equal(clustered.held[name].packed_mask, held.packed_mask)


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ([("mvq", {})], "prune with a `pattern` before it, or use vq"),
        ([("magnitude", {"share": 0.5}), ("mvq", {})], "prune with a `pattern`"),
        ([("magnitude", {"pattern": [4, 8]}), ("mvq", {"axis": "out"})], "along axis 'in' and the codewords along 'out'"),
        ([("magnitude", {"pattern": [8, 16]}), ("mvq", {"width": 8})], "no multiple of the mask's runs of 16"),
        ([("vq", {"width": 7})], "64 inputs are no multiple of 7"),
    ],
)
def test_what_does_not_fit_is_refused(done: Callable, methods: list, said: str) -> None:
    with pytest.raises(UserError, match=said):
        done(*methods)


def test_weights_by_input_lie_along_inputs() -> None:
    with pytest.raises(UserError, match="along axis `in`"):
        plugins.bind("compress", "vq", {"weighted": True, "axis": "out"})()
