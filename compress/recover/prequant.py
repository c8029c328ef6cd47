"""PreQuant: a few weights of a quantised model learn, the rest stays as it was rounded (arXiv 2306.00014).

    W_eff = Ŵ + M ∘ Δ       M: the outliers of each matrix, as `compress.outliers` finds them;  Δ = 0 at first

Here the target is the dense model's distribution (`compress.distil`); recipes that train for a task say `outliers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.calibration import Calibration
from compress.compressed import CompressedModel
from compress.distil import distil
from compress.formats.patched import Patched
from compress.method import Method, beside
from compress.outliers import Score, highest, scores
from rlcore.errors import UserError
from rlcore.protocols import Progress, no_progress


class Prequant(Method):
    learns = True

    def __init__(
        self,
        *,
        share: Annotated[float, Field(gt=0, lt=1)] = 0.005,
        score: Score = "magnitude",
        steps: PositiveInt = 200,
        learning_rate: Annotated[float, Field(gt=0)] = 5e-4,
        seed: int = 0,
    ) -> None:
        self.share, self.score, self.steps, self.learning_rate, self.seed = share, score, steps, learning_rate, seed

    def work(self, matrices: int) -> int:
        return self.steps

    def fit(
        self, compressed: CompressedModel, calibration: Calibration, keep_dense: Sequence[str], progress: Progress = no_progress
    ) -> CompressedModel:
        if not compressed.held:
            raise UserError("prequant tunes a model that is quantised, and nothing is: put rtn, nf4, … before it")
        model, dense = compressed.model, calibration.dense()
        deltas = {}
        generator = torch.Generator().manual_seed(self.seed)
        for name, held in compressed.held.items():
            found = scores(dense.get_parameter(name).detach().float(), held.decode(), self.score, generator)
            deltas[name] = _Delta(highest(found, self.share))
            parametrize.register_parametrization(model.get_submodule(name.removesuffix(".weight")), "weight", deltas[name])
        distil(
            model,
            calibration,
            [*(delta.values for delta in deltas.values()), *beside(model, deltas)],
            steps=self.steps,
            learning_rate=self.learning_rate,
            seed=self.seed,
            progress=progress,
        )
        for name in deltas:
            parametrize.remove_parametrizations(model.get_submodule(name.removesuffix(".weight")), "weight")
        return compressed.holding(
            {
                name: Patched(held.shape, held, deltas[name].places, deltas[name].values.detach().bfloat16())
                for name, held in compressed.held.items()
            }
        )


class _Delta(nn.Module):
    def __init__(self, places: Tensor) -> None:
        super().__init__()
        self.register_buffer("places", places)
        self.values = nn.Parameter(torch.zeros(len(places), device=places.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1).index_add(0, self.places, self.values).view_as(weight)
