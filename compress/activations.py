"""Inputs of matrices rounded to a grid while the model computes, each token with a scale of its own (the A of W8A8).

x̂ = s · ℓ[q]      s = max |x| over a token's inputs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compress.grids import levels, nearest_code


class Activations(NamedTuple):
    grid: str  # of `compress.grids`
    bits: int


def rounded(values: Tensor, to: Activations) -> Tensor:
    """(..., I), each row of I with a scale of its own."""
    scale = values.abs().amax(-1, keepdim=True)
    codes = nearest_code(values / scale.clamp_min(1e-12), to.grid, to.bits)
    return levels(to.grid, to.bits).to(values.device)[codes].to(values.dtype) * scale


def change_inputs(model: nn.Module, weights: Sequence[str], change: Callable[[Tensor], Tensor]) -> list[RemovableHandle]:
    """From now on the modules that have these weights compute with inputs (..., I) that are changed; until the handles are
    removed."""

    def before(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(arguments[0]), *arguments[1:])

    return [model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(before) for name in weights]


def quantise_inputs(model: nn.Module, weights: Sequence[str], to: Activations) -> None:
    """From now on the modules that have these weights compute with rounded inputs."""
    change_inputs(model, weights, lambda inputs: rounded(inputs, to))
