"""A matrix of runs of d weights, each a codeword; with a mask, of which only the weights kept are the codeword's.

    ŵ_j = r · m_j ∘ s·c_{a_j}      codewords c int8 (k, d), their scale s, a scale r for each row where the codebook is shared

Bits: ⌈log₂ k⌉ for each run, ⌈log₂ C(M, N)⌉ for each M weights of the mask, 8·k·d + 32 for a codebook, which matrices may share,
and 16 for each row scale. (MVQ, arXiv 2412.10261.)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compress.grouping import Axis, ungroup
from compress.held import Held
from compress.packing import code_bits, unpack, unpack_mask


@dataclass(frozen=True)
class Codebook(Held):
    axis: Axis
    codewords: Tensor  # (k, d) int8
    scale: Tensor  # () float32
    assignments: Tensor  # packed
    packed_mask: Tensor | None = None  # None: nothing is masked
    pattern: tuple[int, int] | None = None  # N of every M
    row_scales: Tensor | None = None  # (O,) float16

    def decode(self) -> Tensor:
        return self.rebuild(self.codewords.float() * self.scale, self.assigned(), self.mask())

    def rebuild(self, codewords: Tensor, assigned: Tensor, mask: Tensor | None) -> Tensor:
        """(O, I) from these codewords (k, d), differentiable in them, and what `assigned` and `mask` say."""
        runs = codewords[assigned]
        matrix = ungroup(runs if mask is None else runs * mask, self.shape, self.axis)
        return matrix if self.row_scales is None else matrix * self.row_scales.float()[:, None]

    def assigned(self) -> Tensor:
        """(runs,) long: the codeword of each."""
        count, width = self.shape[0] * self.shape[1], self.codewords.shape[1]
        bits = code_bits(len(self.codewords))
        return unpack(self.assignments, bits, count // width).long()

    def mask(self) -> Tensor | None:
        """(runs, d) bool."""
        if self.packed_mask is None or self.pattern is None:
            return None
        return unpack_mask(self.packed_mask, *self.pattern, self.shape[0] * self.shape[1]).view(-1, self.codewords.shape[1])
