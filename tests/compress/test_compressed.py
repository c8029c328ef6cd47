"""A compressed model's folder: what is saved comes back to the bit, in another process too, and damage is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from compress.compressed import ABOUT, WEIGHTS, CompressedModel, load
from compress.written_out import written_out
from rlcore.errors import UserError
from rlcore.models import ModelSpec

EVERY = [
    [("rtn", {"bits": 4, "run": 64})],
    [("cube_root", {"bits": 3, "run": 0})],
    [("nf4", {})],
    [("rtn", {"bits": 8, "run": 0, "activations": 8})],
    [("wanda", {"share": 0.5})],
    [("sparsegpt", {"pattern": [2, 4]})],
    [("vq", {"codes": 16, "shared": True})],
    [("magnitude", {"pattern": [4, 8], "axis": "out"}), ("mvq", {"codes": 16, "axis": "out"})],
    [("rtn", {"bits": 3, "run": 64}), ("prequant", {"steps": 1})],
]


def name_of(methods: list) -> str:
    return "-".join(name for name, _ in methods)


@pytest.mark.parametrize("methods", EVERY, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_saved_comes_back_to_the_bit(
    done: Callable, methods: list, dtype: torch.dtype, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = done(*methods, dtype=dtype)
    model.save(tmp_path, tokenizer)
    again = load(tmp_path)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(model.model(ids).logits, again.model(ids).logits)
    assert (again.size(), again.history, again.dtype) == (model.size(), model.history, model.dtype)
    for name, held in model.held.items():
        assert held.settings() == again.held[name].settings()
        assert [tensor.tolist() for _, tensor in held.tensors()] == [
            tensor.tolist() for _, tensor in again.held[name].tensors()
        ]


@pytest.mark.parametrize("methods", EVERY, ids=name_of)
def test_bits_are_those_of_the_file(done: Callable, methods: list, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """But for the file's own header, which says where each tensor lies."""
    model = done(*methods)
    model.save(tmp_path, tokenizer)
    header = 8 + int.from_bytes((tmp_path / WEIGHTS).read_bytes()[:8], "little")
    size = model.size()
    assert (tmp_path / WEIGHTS).stat().st_size - header == (size.held + size.rest) // 8


def test_a_fresh_process_generates_the_same_tokens(saved: Path) -> None:
    code = (
        "import sys, torch; from compress.compressed import load; model = load(__import__('pathlib').Path(sys.argv[1])).model\n"
        "print(model.generate(torch.arange(5, 20)[None], max_new_tokens=20, do_sample=False).tolist())"
    )
    there = subprocess.run([sys.executable, "-c", code, str(saved)], check=True, capture_output=True, text=True).stdout
    here = load(saved).model.generate(torch.arange(5, 20)[None], max_new_tokens=20, do_sample=False).tolist()
    plain = (
        ModelSpec(written_out(saved)).load().generate(torch.arange(5, 20)[None], max_new_tokens=20, do_sample=False).tolist()
    )
    assert json.loads(there) == here == plain


@pytest.fixture
def saved(done: Callable, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLCORE_CACHE_DIR", str(tmp_path / "cache"))
    done(("magnitude", {"pattern": [4, 8]}), ("mvq", {"codes": 16})).save(tmp_path / "saved", tokenizer)
    return tmp_path / "saved"


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def _reword(file: Path) -> None:
    file.write_text(file.read_text().replace('"axis": "in"', '"axis": "out"', 1))


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        (WEIGHTS, _cut, r"compressed\.safetensors is not what was written \(truncated or changed\)"),
        (WEIGHTS, _flip, r"compressed\.safetensors is not what was written"),
        (WEIGHTS, Path.unlink, r"compressed\.safetensors is missing"),
        ("config.json", _flip, r"config\.json is not what was written"),
        (ABOUT, _cut, r"compression\.json is broken"),
        (ABOUT, _reword, r"compression\.json was changed after it was written"),
        (ABOUT, Path.unlink, "holds no compressed model"),
    ],
)
def test_damage_is_refused_by_the_name_of_the_file(saved: Path, file: str, damage: Callable, said: str) -> None:
    damage(saved / file)
    with pytest.raises(UserError, match=said):
        load(saved)


def test_a_compressed_model_is_written_out_once_for_engines(saved: Path) -> None:
    folder = written_out(saved)
    assert folder == written_out(saved)
    plain, held = ModelSpec(folder).load().state_dict(), load(saved).model.state_dict()
    assert all(torch.equal(plain[name], tensor) for name, tensor in held.items())


def test_an_export_in_bfloat16_is_the_reconstruction_rounded(
    saved: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    load(saved).export(tmp_path / "plain", tokenizer, torch.bfloat16)
    plain = ModelSpec(str(tmp_path / "plain"), "bfloat16").load().state_dict()
    for name, tensor in load(saved).model.state_dict().items():
        assert torch.equal(plain[name], tensor.bfloat16())


def test_activations_cannot_be_exported(done: Callable, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model: CompressedModel = done(("rtn", {"bits": 8, "run": 0, "activations": 8}))
    with pytest.raises(UserError, match="cannot say that activations are quantised"):
        model.export(tmp_path, tokenizer, torch.float32)
