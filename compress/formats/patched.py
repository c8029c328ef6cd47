"""A matrix in another format, with some weights moved away from what that says (PreQuant's outliers, arXiv 2306.00014).

    Ŵ = base + Δ      Δ: bfloat16 values at int32 places, row by row

Bits: those of the base, and 48 for each place.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compress.held import Held


@dataclass(frozen=True)
class Patched(Held):
    base: Held
    places: Tensor  # (n,) int32, each once
    values: Tensor  # (n,) bfloat16

    def decode(self) -> Tensor:
        matrix = self.base.decode().contiguous()
        matrix.view(-1).index_add_(0, self.places.long(), self.values.float())
        return matrix
