"""Which weights lie side by side: runs along a row (one output's inputs) or along a column (one input's outputs).

axis "in"    W (O, I) → (O·I/d, d): d consecutive inputs of an output, the direction in which a matrix product sums
axis "out"   W (O, I) → (O·I/d, d): d consecutive outputs at an input, which is how MVQ's accelerator reads
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from rlcore.errors import UserError

Axis = Literal["in", "out"]


def group(matrix: Tensor, width: int, axis: Axis) -> Tensor:
    """(O, I) → (O·I/width, width). Raises UserError where the axis is no multiple of the width."""
    outputs, inputs = matrix.shape
    along = inputs if axis == "in" else outputs
    if along % width:
        raise UserError(f"{along} {'inputs' if axis == 'in' else 'outputs'} are no multiple of {width}")
    return (matrix if axis == "in" else matrix.T).reshape(-1, width)


def ungroup(groups: Tensor, shape: tuple[int, int], axis: Axis) -> Tensor:
    """The inverse: (O·I/width, width) → (O, I)."""
    outputs, inputs = shape
    return groups.reshape(outputs, inputs) if axis == "in" else groups.reshape(inputs, outputs).T
