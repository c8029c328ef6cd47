"""Masks by importance: what the pruners of `compress/prune` have in common.

Of a matrix the least important weights are left out: either N of every M are kept along an axis (`pattern`), or of each row a
share (`share`) is dropped, as Wanda compares them.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from compress.calibration import Inputs
from compress.formats.sparse import sparse
from compress.grouping import Axis, group, ungroup
from compress.held import Held
from compress.method import Matrixwise
from compress.packing import mask_bits
from rlcore.errors import UserError

Share = Annotated[float, Field(gt=0, lt=1)]
Pattern = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=2, le=16)]]


def mask_of_pattern(importance: Tensor, pattern: tuple[int, int], axis: Axis) -> Tensor:
    """(O, I) bool: the N most important of every M along the axis. Raises UserError where M does not divide it."""
    keep, of = pattern
    runs = group(importance, of, axis)
    kept = torch.zeros_like(runs, dtype=torch.bool).scatter_(1, runs.topk(keep, 1).indices, True)
    return ungroup(kept, tuple(importance.shape), axis)


def mask_of_share(importance: Tensor, share: float) -> Tensor:
    """(O, I) bool: all but the least important `share` of each row."""
    dropped = int(share * importance.shape[1])
    order = importance.argsort(1)
    return torch.ones_like(importance, dtype=torch.bool).scatter_(1, order[:, :dropped], False)


class Pruner(Matrixwise):
    """Give `pattern` or `share`."""

    def __init__(self, *, pattern: Pattern | None = None, share: Share | None = None, axis: Axis = "in") -> None:
        if (pattern is None) == (share is None):
            raise UserError("a pruner is told either `pattern` ([N, M]) or `share` (of weights left out): set one of them")
        if pattern is not None and not pattern[0] < pattern[1]:
            raise UserError(f"pattern {list(pattern)} leaves nothing out: it is [N, M] with N < M")
        if pattern is not None:
            mask_bits(*pattern)
        self.pattern, self.share, self.axis = pattern, share, axis

    def hold(self, weight: Tensor, before: Held | None, inputs: Inputs | None, dtype: torch.dtype) -> Held:
        importance = self.importance(weight, inputs)
        if self.pattern is not None:
            mask = mask_of_pattern(importance, self.pattern, self.axis)
        else:
            assert self.share is not None
            mask = mask_of_share(importance, self.share)
        return sparse(weight, mask, self.pattern, self.axis, dtype)

    def importance(self, weight: Tensor, inputs: Inputs | None) -> Tensor:
        """(O, I) of each weight."""
        raise NotImplementedError
