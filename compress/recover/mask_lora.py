"""MaskLoRA: what pruning lost is learned back by low-rank adapters under the mask, and merged (PERP, arXiv 2312.15230).

    W_eff = W + α/r · M ∘ (B A)      A (r, I), B (O, r), B = 0 at first

The mask M is the one that the pruner set, kept as such: a weight that it kept and that is 0 can still learn.
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from compress.calibration import Calibration
from compress.compressed import CompressedModel
from compress.formats.sparse import Sparse, sparse
from compress.held import Held
from compress.recovery import LearningRate, Recovery
from rlcore.errors import UserError


class MaskLora(Recovery):
    def __init__(
        self,
        *,
        rank: PositiveInt = 16,
        alpha: PositiveFloat = 32.0,
        steps: PositiveInt = 200,
        learning_rate: LearningRate = 5e-4,
        seed: int = 0,
    ) -> None:
        super().__init__(steps, learning_rate, seed)
        self.rank, self.alpha = rank, alpha

    def learning(self, compressed: CompressedModel, calibration: Calibration) -> dict[str, nn.Module]:
        pruned = {name: held for name, held in compressed.held.items() if isinstance(held, Sparse)}
        if not pruned:
            raise UserError("mask_lora recovers what pruning lost, and nothing is: put magnitude, wanda or sparsegpt first")
        return {name: _Masked(held.mask(), self.rank, self.alpha / self.rank) for name, held in pruned.items()}

    def learned(self, name: str, module: nn.Module, compressed: CompressedModel) -> Held:
        held, weight = compressed.held[name], compressed.model.get_parameter(name).detach()
        assert isinstance(held, Sparse)  # `learning` takes no others
        return sparse(weight, held.mask(), held.pattern, held.axis, compressed.dtype)


class _Masked(nn.Module):
    def __init__(self, mask: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        outputs, inputs = mask.shape
        self.register_buffer("mask", mask)
        self.a = nn.Parameter(torch.randn(rank, inputs, device=mask.device) / inputs**0.5)
        self.b = nn.Parameter(torch.zeros(outputs, rank, device=mask.device))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self.mask * (self.b @ self.a)
