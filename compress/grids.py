"""The tables of levels that quantisers round to, by name; each (levels,) float32 in [−1, 1], rising.

    uniform   q / (2^{b−1} − 1)                         round-to-nearest
    cube      (q / (2^{b−1} − 1))³                      small values finely, large ones coarsely (arXiv 2403.06408)
    nf4       quantiles of a normal distribution        QLoRA's NormalFloat (arXiv 2305.14314), 4 bits only

with q = −(2^{b−1} − 1) … 2^{b−1} − 1. Rounding is to the nearest level in the domain where the levels are uniform: for `cube`
that of cube roots, as the paper has it, and not of the weights.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from rlcore.errors import UserError, nearest

GRIDS = ("uniform", "cube", "nf4")


@functools.cache
def levels(grid: str, bits: int) -> Tensor:
    """Raises UserError for a table that there is not."""
    if grid not in GRIDS:
        raise UserError(f"there is no grid {grid!r}{nearest(grid, GRIDS)}")
    if grid == "nf4":
        if bits != 4:
            raise UserError(f"nf4 is a table of 4 bits, not of {bits}")
        return _normal_float()
    if not 2 <= bits <= 8:
        raise UserError(f"a grid has 2 to 8 bits, not {bits}")
    most = 2 ** (bits - 1) - 1
    uniform = torch.arange(-most, most + 1) / most
    return uniform if grid == "uniform" else uniform**3


def nearest_code(values: Tensor, grid: str, bits: int) -> Tensor:
    """Values in units of their scale → codes; beyond ±1 the last ones."""
    table = levels(grid, bits).to(values.device)
    if grid == "nf4":
        return torch.bucketize(values, (table[1:] + table[:-1]) / 2)
    most = 2 ** (bits - 1) - 1
    linear = values if grid == "uniform" else values.sign() * values.abs() ** (1 / 3)
    return (linear * most).round().clamp(-most, most).long() + most


def _normal_float() -> Tensor:
    """Seven quantiles on the negative side, zero, and eight on the positive side: of the normal
    distribution at steps that are equal on each side, the outermost at 1 − (1/32 + 1/30)/2, as in QLoRA's appendix E."""
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    upper = normal.icdf(torch.linspace(outermost, 0.5, 9, dtype=torch.float64)[:-1])
    lower = -normal.icdf(torch.linspace(outermost, 0.5, 8, dtype=torch.float64)[:-1])
    table = torch.cat([lower, torch.zeros(1, dtype=torch.float64), upper]).sort().values
    return (table / table.abs().max()).float()
