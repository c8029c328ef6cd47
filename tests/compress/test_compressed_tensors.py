"""The format of compressed-tensors: its own library and transformers read our reconstruction from what is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from compress.compressed_tensors import export
from rlcore.errors import UserError

NAME = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize("options", [{"bits": 4, "run": 32}, {"bits": 4, "run": 0}, {"bits": 8, "run": 64}], ids=str)
def test_its_own_library_unpacks_our_reconstruction(
    done: Callable, options: dict, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    model = done(("rtn", options))
    export(model, tmp_path, tokenizer, torch.float32)
    state = load_file(tmp_path / "model.safetensors")
    shape, scale = torch.Size(state[f"{NAME}_shape"].tolist()), state[f"{NAME}_scale"]
    codes = helpers.unpack_from_int32(state[f"{NAME}_packed"], options["bits"], shape)
    found = (codes.float().view(shape[0], scale.shape[1], -1) * scale[..., None]).view(shape)
    torch.testing.assert_close(found, model.held[NAME].decode(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "apart"),
    [
        ({"bits": 4, "run": 32}, 1e-4),
        ({"bits": 8, "run": 0}, 1e-4),
        ({"bits": 8, "run": 0, "activations": 8}, 1e-2),  # its inputs are rounded to 255 levels a token, ours to 254
    ],
    ids=str,
)
def test_transformers_computes_with_it(
    done: Callable, options: dict, apart: float, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    pytest.importorskip("compressed_tensors")
    model = done(("rtn", options))
    export(model, tmp_path, tokenizer, torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model.model(ids).logits, rtol=0, atol=apart)


@pytest.mark.parametrize(
    "methods",
    [
        [("nf4", {})],
        [("cube_root", {"bits": 4, "run": 0})],
        [("rtn", {"bits": 3, "run": 0})],
        [("vq", {"codes": 8})],
        [],
    ],
    ids=str,
)
def test_what_the_format_cannot_say_is_refused(
    done: Callable, methods: list, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UserError, match="all rounded by rtn or clipped"):
        export(done(*methods), tmp_path, tokenizer, torch.float32)


def test_rounded_inputs_need_eight_bits_and_rows(done: Callable, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="both have 8 bits"):
        export(done(("rtn", {"bits": 4, "run": 0, "activations": 8})), tmp_path, tokenizer, torch.float32)
