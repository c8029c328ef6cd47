"""A matrix of codes into a table of levels, with a scale for each run of a row.

    ŵ = s · ℓ[q]      ℓ in [−1, 1], s the largest |w| of its run where nothing is clipped

Bits: b for each weight and 16 for each run. The table is known by its name (`compress.grids`) and not stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compress import grids
from compress.held import Held
from compress.packing import unpack


@dataclass(frozen=True)
class Levels(Held):
    grid: str  # of `compress.grids`
    bits: int  # b
    codes: Tensor  # packed
    scales: Tensor  # (O, runs) float16

    def decode(self) -> Tensor:
        levels = grids.levels(self.grid, self.bits).to(self.codes.device)
        outputs, inputs = self.shape
        runs = levels[unpack(self.codes, self.bits, outputs * inputs)].view(outputs, self.scales.shape[1], -1)
        return (runs * self.scales.float()[..., None]).view(outputs, inputs)
