"""Compressed weights on their way: what a `codes` update of `rollout.sync` is made of.

    model.layers.0.mlp.up_proj.weight/codes, …/scales      the tensors that a `compress.held.Held` stores, whole in one bucket
    model.norm.weight                                      what is not compressed, as in a full update

The manifest has the settings of each. Every update brings everything, so an engine keeps none of it: it decodes a bucket, and
serves what came out as it serves any weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from compress.held import Held, read
from rlcore.errors import UserError

Settings = Mapping[str, Mapping[str, Any]]  # of the compressed weights, by name


def stored(name: str, held: Held) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a weight, as they are called on the way."""
    yield from ((f"{name}/{field}", tensor) for field, tensor in held.tensors())


def weight_of(name: str) -> str:
    """Which weight a tensor is, or belongs to."""
    return name.partition("/")[0]


def decoded(tensors: Mapping[str, Tensor], settings: Settings, dtype: torch.dtype) -> dict[str, Tensor]:
    """Plain tensors of the checkpoint's names, those that were compressed in `dtype`. Raises UserError where the tensors of one
    are not all there, or are not what the settings say."""
    plain: dict[str, Tensor] = {}
    fields: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        weight, _, field = name.partition("/")
        if field:
            fields.setdefault(weight, {})[field] = tensor
        else:
            plain[name] = tensor
    return plain | {weight: _held(weight, settings[weight], of).decode().to(dtype) for weight, of in fields.items()}


def shape_of(weight: str, settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """What the weight will have been decoded to, by the shapes of all tensors that are announced. Raises as `decoded` does."""
    own = {name: shape for name, shape in shapes.items() if name.startswith(f"{weight}/")}
    tensors = {name.partition("/")[2]: torch.empty(shape, device="meta") for name, shape in own.items()}
    return tuple(_held(weight, settings, tensors).shape)


def _held(weight: str, settings: Mapping[str, Any], fields: Mapping[str, Tensor]) -> Held:
    try:
        return read(settings, fields)
    except UserError as error:
        raise UserError(f"{weight!r} cannot be decoded: {error}") from error
