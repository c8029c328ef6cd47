"""Weights are left out one column after the other, and those to come make up for it (Frantar & Alistarh, arXiv 2301.00774).

    H = 2/n Σ x xᵀ + damping · mean(diag H) · 1        U = the upper Cholesky factor of H⁻¹
    column j:  error e = (w_j − ŵ_j) / U_jj,   and every later column   w_k ← w_k − e · U_jk

Importance is w² / U_jj². With `share`, a block of 128 columns is thresholded as a whole; with `pattern`, [N, M] columns at a
time. Inputs that were never given anything are left out.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from compress.calibration import Inputs
from compress.formats.sparse import sparse
from compress.held import Held
from compress.pruning import Pattern, Pruner, Share, mask_of_pattern

BLOCK = 128  # columns whose errors are passed on at a time; a multiple of every M but those of 16 that do not divide it


class Sparsegpt(Pruner):
    looks_at = "gram"

    def __init__(
        self,
        *,
        pattern: Pattern | None = None,
        share: Share | None = None,
        damping: Annotated[float, Field(gt=0)] = 0.01,
    ) -> None:
        super().__init__(pattern=pattern, share=share)
        self.damping = damping

    def hold(self, weight: Tensor, before: Held | None, inputs: Inputs | None, dtype: torch.dtype) -> Held:
        assert inputs is not None
        weight = weight.clone()
        factor = inverse_factor(weight, inputs, self.damping)
        mask = torch.ones_like(weight, dtype=torch.bool)
        block = BLOCK if self.pattern is None else BLOCK - BLOCK % self.pattern[1]
        for start in range(0, weight.shape[1], block):
            columns = slice(start, min(start + block, weight.shape[1]))
            errors = self._block(weight[:, columns], mask[:, columns], factor[columns, columns])
            weight[:, columns.stop :] -= errors @ factor[columns, columns.stop :]
        return sparse(weight, mask, self.pattern, "in", dtype)

    def _block(self, weight: Tensor, mask: Tensor, factor: Tensor) -> Tensor:
        """Prunes some columns in place, sets their mask, and returns the errors that are to be passed on."""
        importance = weight.square() / factor.diagonal().square()
        if self.pattern is None:
            assert self.share is not None
            mask.copy_(importance > importance.flatten().kthvalue(max(1, int(self.share * importance.numel()))).values)
        errors = torch.zeros_like(weight)
        for j in range(weight.shape[1]):
            if self.pattern is not None and j % self.pattern[1] == 0:
                run = slice(j, j + self.pattern[1])
                now = weight[:, run].square() / factor.diagonal()[run].square()
                mask[:, run] = mask_of_pattern(now, self.pattern, "in")
            kept = weight[:, j] * mask[:, j]
            errors[:, j] = (weight[:, j] - kept) / factor[j, j]
            weight[:, j] = kept
            weight[:, j + 1 :] -= errors[:, j, None] * factor[None, j, j + 1 :]
        return errors


def inverse_factor(weight: Tensor, inputs: Inputs, damping: float) -> Tensor:
    """U (I, I), in float32 from float64. Columns of `weight` whose input is always 0 are set to 0, in place."""
    hessian = 2 * inputs.gram.double() / max(1, inputs.count)
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    weight[:, dead] = 0
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True).float()
