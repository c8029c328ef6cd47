"""MaskLoRA: what pruning lost is learned back by low-rank adapters under the mask, and merged (PERP, arXiv 2312.15230).

    W_eff = W + α/r · M ∘ (B A)      A (r, I), B (O, r), B = 0 at first

The mask M is the one that the pruner set, kept as such: a weight that it kept and that is 0 can still learn. Biases and norms
learn with them. The target is the dense model's distribution (`compress.distil`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.calibration import Calibration
from compress.compressed import CompressedModel
from compress.distil import distil
from compress.formats.sparse import Sparse, sparse
from compress.method import Method, beside
from rlcore.errors import UserError
from rlcore.protocols import Progress, no_progress


class MaskLora(Method):
    def __init__(
        self,
        *,
        rank: PositiveInt = 16,
        alpha: PositiveFloat = 32.0,
        steps: PositiveInt = 200,
        learning_rate: Annotated[float, Field(gt=0)] = 5e-4,
        seed: int = 0,
    ) -> None:
        self.rank, self.alpha, self.steps, self.learning_rate, self.seed = rank, alpha, steps, learning_rate, seed

    def fit(
        self, compressed: CompressedModel, calibration: Calibration, keep_dense: Sequence[str], progress: Progress = no_progress
    ) -> CompressedModel:
        pruned = {name: held for name, held in compressed.held.items() if isinstance(held, Sparse)}
        if not pruned:
            raise UserError("mask_lora recovers what pruning lost, and nothing is: put magnitude, wanda or sparsegpt first")
        model = compressed.model
        torch.manual_seed(self.seed)
        adapters = {name: _Masked(held.mask(), self.rank, self.alpha / self.rank) for name, held in pruned.items()}
        for name, adapter in adapters.items():
            parametrize.register_parametrization(model.get_submodule(name.removesuffix(".weight")), "weight", adapter)
        learning = [parameter for adapter in adapters.values() for parameter in adapter.parameters()]
        distil(
            model,
            calibration,
            [*learning, *beside(model, adapters)],
            steps=self.steps,
            learning_rate=self.learning_rate,
            seed=self.seed,
            progress=progress,
        )
        for name in adapters:
            parametrize.remove_parametrizations(model.get_submodule(name.removesuffix(".weight")), "weight")
        return compressed.holding(
            {
                name: sparse(model.get_parameter(name).detach(), held.mask(), held.pattern, held.axis, compressed.dtype)
                for name, held in pruned.items()
            }
        )


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
