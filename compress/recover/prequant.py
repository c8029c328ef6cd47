"""PreQuant: a few weights of a quantised model learn, the rest stays as it was rounded (arXiv 2306.00014).

    W_eff = Ŵ + M ∘ Δ       M: the outliers of each matrix, as `compress.outliers` finds them;  Δ = 0 at first

The target is the dense model's distribution; recipes that train for a task say `outliers`.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from compress.calibration import Calibration
from compress.compressed import CompressedModel
from compress.formats.patched import Patched
from compress.formats.sparse import Sparse
from compress.held import Held
from compress.outliers import Score, highest, scores
from compress.recovery import LearningRate, Recovery
from rlcore.errors import UserError


class Prequant(Recovery):
    def __init__(
        self,
        *,
        share: Annotated[float, Field(gt=0, lt=1)] = 0.005,
        score: Score = "magnitude",
        steps: PositiveInt = 200,
        learning_rate: LearningRate = 5e-4,
        seed: int = 0,
    ) -> None:
        super().__init__(steps, learning_rate, seed)
        self.share, self.score = share, score

    def learning(self, compressed: CompressedModel, calibration: Calibration) -> dict[str, nn.Module]:
        if not compressed.held:
            raise UserError("prequant tunes a model that is quantised, and nothing is: put rtn, nf4, … before it")
        if pruned := [name for name, held in compressed.held.items() if isinstance(held, Sparse)]:
            raise UserError(f"prequant would bring back what was pruned of {pruned[0]}: put rtn, nf4, … between them")
        dense, generator = calibration.dense(), torch.Generator().manual_seed(self.seed)
        weights = {name: dense.get_parameter(name).detach().float() for name in compressed.held}
        return {
            name: _Delta(highest(scores(weights[name], held.decode(), self.score, generator), self.share))
            for name, held in compressed.held.items()
        }

    def learned(self, name: str, module: nn.Module, compressed: CompressedModel) -> Held:
        assert isinstance(module, _Delta)  # `learning` makes no others
        base = compressed.held[name]
        return Patched(base.shape, base, module.places, module.values.detach().bfloat16())


class _Delta(nn.Module):
    def __init__(self, places: Tensor) -> None:
        super().__init__()
        self.register_buffer("places", places)
        self.values = nn.Parameter(torch.zeros(len(places), device=places.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1).index_add(0, self.places, self.values).view_as(weight)
