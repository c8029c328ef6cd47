"""A matrix of which some weights are kept, and which.

Bits: those of each value kept; and for the mask 1 for each weight, or where it keeps N of every M ⌈log₂ C(M, N)⌉ for each M.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.grouping import Axis, group, ungroup
from compress.held import Held
from compress.packing import pack, pack_mask, unpack, unpack_mask


@dataclass(frozen=True)
class Sparse(Held):
    values: Tensor  # (kept,) in the order of the mask's runs
    packed_mask: Tensor
    pattern: tuple[int, int] | None  # N of every M; None: any
    axis: Axis  # along which the runs of M lie

    def decode(self) -> Tensor:
        mask = group(self.mask(), 1, self.axis)
        found = torch.zeros(mask.shape, device=mask.device)
        found[mask] = self.values.float()
        return ungroup(found, self.shape, self.axis)

    def mask(self) -> Tensor:
        """(O, I) bool: which weights are kept, those among them that are zero too."""
        count = self.shape[0] * self.shape[1]
        flat = unpack(self.packed_mask, 1, count).bool() if self.pattern is None else self._of_pattern(count)
        return ungroup(flat, self.shape, self.axis)

    def _of_pattern(self, count: int) -> Tensor:
        assert self.pattern is not None
        return unpack_mask(self.packed_mask, *self.pattern, count)


def sparse(weight: Tensor, mask: Tensor, pattern: tuple[int, int] | None, axis: Axis, dtype: torch.dtype) -> Sparse:
    """`weight` (O, I) where `mask` (O, I) is set, its values in `dtype`."""
    flat = group(mask, 1, axis)
    packed = pack(flat, 1) if pattern is None else pack_mask(flat, *pattern)
    return Sparse(tuple(weight.shape), group(weight, 1, axis)[flat].to(dtype), packed, pattern, axis)
