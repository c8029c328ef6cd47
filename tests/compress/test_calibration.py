"""What the walk over the layers sees, and which matrices there are."""

from __future__ import annotations

import pytest
import torch

from compress.calibration import Calibration, matrices, packed, walk
from rlcore.errors import UserError
from rlcore.models import ModelSpec


def test_a_walk_sums_up_what_each_matrix_is_given(tiny_spec: ModelSpec, calibration: Calibration) -> None:
    """Against hooks on a plain forward pass over all rows."""
    model = tiny_spec.load().eval()
    weights = matrices(model)
    seen: dict[str, torch.Tensor] = {}
    for name in weights:
        module = model.get_submodule(name.removesuffix(".weight"))
        module.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0].detach()}))
    with torch.no_grad():
        model(calibration.rows)
    for statistics in ("norms", "gram"):
        found = {n: i for layer in walk(model, weights, calibration, statistics) for n, i in layer.inputs.items()}  # type: ignore[arg-type]
        model(calibration.rows)
        assert set(found) == set(weights)
        for name, inputs in found.items():
            flat = seen[name].reshape(-1, seen[name].shape[-1])
            torch.testing.assert_close(inputs.mean_square, flat.square().mean(0), rtol=1e-4, atol=1e-6)
            if statistics == "gram":
                torch.testing.assert_close(inputs.gram, flat.T @ flat, rtol=1e-3, atol=1e-4)


def test_a_layer_is_given_what_the_changed_layers_below_put_out(tiny_spec: ModelSpec, calibration: Calibration) -> None:
    model = tiny_spec.load().eval()
    found = []
    for layer in walk(model, matrices(model), calibration, "norms"):
        found.append(layer.inputs)
        for weight in layer.weights.values():
            weight.data.zero_()
    q = found[1]["model.layers.1.self_attn.q_proj.weight"]
    embedded = model.get_input_embeddings()(calibration.rows)
    normed = model.get_decoder().layers[1].input_layernorm(embedded)  # nothing was added to the residual stream
    torch.testing.assert_close(q.mean_square, normed.detach().square().mean((0, 1)), rtol=1e-4, atol=1e-6)


def test_matrices_are_the_linear_layers_without_those_named(tiny_spec: ModelSpec) -> None:
    model = tiny_spec.load()
    assert "lm_head.weight" in matrices(model)
    assert len(matrices(model, ["lm_head", "layers.0."])) == 7
    with pytest.raises(UserError, match="names 'ln_head', and no matrix is called that"):
        matrices(model, ["ln_head"])
    with pytest.raises(UserError, match="leaves no matrix"):
        matrices(model, ["weight"])


def test_a_tied_head_is_no_matrix(tiny_spec: ModelSpec) -> None:
    model = tiny_spec.load()
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.get_input_embeddings().weight
    assert "lm_head.weight" not in matrices(model, ["lm_head"])


def test_layers_that_attend_in_several_ways_are_refused(tiny_spec: ModelSpec, calibration: Calibration) -> None:
    """All would be called as the first one is."""
    model = tiny_spec.load().eval()
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(UserError, match="attend in several ways"):
        next(iter(walk(model, matrices(model), calibration, "norms")))


def test_texts_are_packed_into_rows() -> None:
    assert packed([[1, 2, 3], [4], [5, 6, 7]], 2, 3).tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(UserError, match="asks for 3 x 3 tokens, and its texts have 7"):
        packed([[1, 2, 3], [4], [5, 6, 7]], 3, 3)
