"""A model rounded to uniform levels as a checkpoint of compressed-tensors, which vLLM and transformers read.

    pack-quantized   weights of 4 or 8 bits, a scale for each run of a row (W4A16, W8A16): 32 / bits codes in an int32
    int-quantized    weights and inputs of 8 bits, a scale for each row and each token (W8A8): int8 matrix products

The format's weight is scale · q with q = −2^{b−1} … 2^{b−1} − 1, of which ours uses all but the lowest; its scale is ours
divided by 2^{b−1} − 1, in the dtype of the checkpoint: in float32 what is read is our reconstruction, in bfloat16 the scales
are rounded. Other grids, codebooks and masks have no place in the format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from compress.compressed import CompressedModel
from compress.formats.levels import Levels
from compress.packing import unpack
from rlcore.errors import UserError


def export(compressed: CompressedModel, folder: Path, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> None:
    """Write the checkpoint. Raises UserError for a model that the format cannot say."""
    held, bits, run = _uniform(compressed)
    both = compressed.activations is not None
    state = {name: tensor.to(dtype) for name, tensor in compressed.plain_state().items() if name not in held}
    for name, weight in held.items():
        state |= _integers(name, weight, dtype) if both else _packed(name, weight, dtype)
    linear = [name for name, module in compressed.model.named_modules() if isinstance(module, nn.Linear)]
    said = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if both else "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [name for name in linear if f"{name}.weight" not in held],
        "config_groups": {"group_0": _scheme(bits, run, both)},
    }
    compressed.write(folder, tokenizer, state, dtype, quantization_config=said)


def _uniform(compressed: CompressedModel) -> tuple[dict[str, Levels], int, int]:
    """The held matrices, their bits and run (0: the row). Raises UserError where they are of another format, or not alike."""
    held = {name: weight for name, weight in compressed.held.items() if isinstance(weight, Levels)}
    rows = all(weight.scales.shape[1] == 1 for weight in held.values())
    kinds = {(w.grid, w.bits, 0 if rows else w.shape[1] // w.scales.shape[1]) for w in held.values()}
    grid, bits, run = next(iter(kinds), ("nothing", 0, 0))
    if len(held) < len(compressed.held) or len(kinds) != 1 or grid != "uniform" or bits not in (4, 8):
        raise UserError("compressed-tensors holds matrices that were all rounded by rtn or clipped, alike, to 4 or 8 bits")
    if (both := compressed.activations) is not None and (bits, run, *both) != (8, 0, "uniform", 8):
        raise UserError("compressed-tensors rounds inputs where both have 8 bits and weights a scale for each row")
    return held, bits, run


def _scheme(bits: int, run: int, both: bool) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False}
    weights |= {"strategy": "group", "group_size": run} if run else {"strategy": "channel"}
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    return {"targets": ["Linear"], "weights": weights, "input_activations": inputs if both else None}


def _codes(weight: Levels) -> Tensor:
    """(O, I) int32, q."""
    most = 2 ** (weight.bits - 1) - 1
    return unpack(weight.codes, weight.bits, weight.shape[0] * weight.shape[1]).view(weight.shape) - most


def _scale(weight: Levels, dtype: torch.dtype) -> Tensor:
    return (weight.scales.float() / (2 ** (weight.bits - 1) - 1)).to(dtype)


def _integers(name: str, weight: Levels, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: _codes(weight).to(torch.int8), f"{name}_scale": _scale(weight, dtype)}


def _packed(name: str, weight: Levels, dtype: torch.dtype) -> dict[str, Tensor]:
    """The first code in the lowest bits of each int32, each with 2^{b−1} added."""
    count = 32 // weight.bits
    codes = nn.functional.pad(_codes(weight) + 2 ** (weight.bits - 1), (0, -weight.shape[1] % count))
    places = weight.bits * torch.arange(count, device=codes.device, dtype=torch.int32)
    packed = (codes.view(weight.shape[0], -1, count).int() << places).sum(2, dtype=torch.int32)
    return {
        f"{name}_packed": packed,
        f"{name}_scale": _scale(weight, dtype),
        f"{name}_shape": torch.tensor(weight.shape),
    }
