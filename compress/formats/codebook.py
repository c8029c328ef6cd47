"""A matrix of runs of d weights, each a codeword; with a mask, of which only the weights kept are the codeword's.

    ŵ_j = r · m_j ∘ s·c_{a_j}      codewords c (k, d), their scale s, a scale r for each row where the codebook is shared

The codewords are int8, at rest; or bfloat16 with s = 1 while what they stand for moves: an int8 codeword moves in steps of
max |c| / 127, which is more than a step of training does, a bfloat16 one in steps of 2⁻⁸ of itself.

Bits: ⌈log₂ k⌉ for each run, ⌈log₂ C(M, N)⌉ for each M weights of the mask, 8·k·d (or 16·k·d) + 32 for a codebook, which
matrices may share, and 16 for each row scale. (MVQ, arXiv 2412.10261.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.grouping import Axis, group, ungroup
from compress.held import Held
from compress.kmeans import means
from compress.packing import code_bits, unpack, unpack_mask


@dataclass(frozen=True)
class Codebook(Held):
    axis: Axis
    codewords: Tensor  # (k, d) int8 or bfloat16
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

    def refitted(self, weight: Tensor) -> Codebook:
        """The same assignments and mask, and codewords in bfloat16, each the mean of the weights (O, I) that it stands for: the
        update step of k-means. One that stands for none stays. For a codebook of one matrix, without row scales."""
        assert self.row_scales is None  # `compress.codec` fits none that is shared
        rows, mask = group(weight.float(), self.codewords.shape[1], self.axis), self.mask()
        counts = torch.ones_like(rows) if mask is None else mask.float()
        now = means(counts * rows, counts, self.codewords.float() * self.scale, self.assigned())
        return replace(self, codewords=now.bfloat16(), scale=torch.ones_like(self.scale))

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
