"""The outliers of a quantised base as what is trained (PreQuant, arXiv 2306.00014; `compress/outliers.py` chooses them).

    y = (Ŵ + M ∘ Δ) x        Ŵ frozen, Δ one number for each place of M, 0 at first

PEFT's sparse adapter (SHiRA, arXiv 2406.13175) computes it: a layer is given its places and as many zeros, of which SHiRA's own
masks have a multiple of inputs + outputs. In the backward pass a dense gradient exists of one matrix at a time, of which the
places are read; gradients and moments are kept of Δ alone. A forward pass makes Ŵ + M ∘ Δ of each matrix, and keeps it until
the backward pass: a second copy of the weights, in the dtype of the forward passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel, ShiraConfig, get_peft_model
from peft.tuners.shira import ShiraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.compressed import CompressedModel, load
from compress.formats.patched import Patched
from rlcore.errors import UserError
from trainers.quantised_base import COMPRESSED, outliers_of

DELTA = "default"  # the adapter's name, by PEFT's custom


def with_outliers(model: PreTrainedModel, location: str, train_norms: bool) -> PeftModel:
    """The model of the quantised base at `location` with nothing to learn but its outliers, and its norms if they are to."""
    chosen = {name.removesuffix(".weight"): held for name, held in outliers_of(location).items()}
    there = {name: module for name, module in model.named_modules() if name in chosen}  # a classifier has no language head
    if not there:
        raise UserError(f"{location} has no outliers of this model's matrices")
    norms = [name for name, _ in _norms(model)] if train_norms else None
    config = ShiraConfig(r=1, target_modules=list(there), modules_to_save=norms)
    config.mask_fn = None  # the layers get their places below
    adapted: PeftModel = get_peft_model(model, config)
    torch.sparse.check_sparse_tensor_invariants.disable()  # said aloud, or torch warns: our places are in the matrix
    for name in there:
        _mark(adapted.get_base_model().get_submodule(name), chosen[name])
    return adapted


def _mark(layer: ShiraLayer, chosen: Patched) -> None:
    """Give the layer its places, and Δ = 0."""
    device = layer.get_base_layer().weight.device
    places = chosen.places.to(device)
    layer.shira_indices[DELTA] = torch.stack([places // layer.in_features, places % layer.in_features])
    layer.shira_weight[DELTA] = nn.Parameter(torch.zeros(len(places), device=device))


def _norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules without modules in them whose parameters are all vectors."""
    for name, module in model.named_modules():
        own = list(module.parameters())
        if own and not list(module.children()) and all(parameter.ndim == 1 for parameter in own):
            yield name, module


def places(layer: ShiraLayer) -> Tensor:
    """(n,) int32, rising: of what learns in the matrix, row by row."""
    row, column = layer.shira_indices[DELTA]
    return row * layer.in_features + column


def has_outliers(model: nn.Module) -> bool:
    return isinstance(model, PeftModel) and isinstance(model.peft_config[DELTA], ShiraConfig)


def base_of(model: PeftModel) -> str:
    """Where the quantised base is that the outliers belong to."""
    return str(model.peft_config[DELTA].base_model_name_or_path)


def delta_names(model: PeftModel) -> Iterator[tuple[str, str]]:
    """The name of each matrix in the plain model, and that of its Δ among the parameters of this one."""
    for name, module in model.named_modules():
        if isinstance(module, ShiraLayer):
            yield f"{name.removeprefix('base_model.model.')}.weight", f"{name}.shira_weight.{DELTA}"


@torch.no_grad()
def compressed(location: str, deltas: Mapping[str, Tensor], merged: Mapping[str, Tensor]) -> CompressedModel:
    """The quantised base at `location` with these `deltas` by the name of the matrix; what is not held is that of `merged`, the
    plain model's tensors by name. It holds Δ in bfloat16: its weights differ from the merged ones by up to 2⁻⁹ of Δ."""
    base = load(Path(location).parent / COMPRESSED)
    for name, parameter in base.model.named_parameters():
        if name not in base.held:
            parameter.copy_(merged[name])
    return base.holding({n: replace(base.held[n], values=delta.to("cpu", torch.bfloat16)) for n, delta in deltas.items()})
