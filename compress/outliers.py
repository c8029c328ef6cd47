"""Which weights of a rounded matrix stay free to learn: its outliers (PreQuant, arXiv 2306.00014).

    Ŵ = DeQ(Q(W)) + M ∘ Δ      M: the ⌊ρ·O·I + ½⌋ entries of highest score, one at least;  Δ = 0 at first

    magnitude   |w − mean(W)|
    error       |w − DeQ(Q(w))|, what rounding lost
    random      drawn with a seed: the control

The paper calls both of the first outliers and does not say which of them it takes; ρ is 0.5 % there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from compress.calibration import Inputs
from compress.formats.patched import Patched
from compress.held import Held
from compress.method import Matrixwise
from rlcore.errors import UserError

Score = Literal["magnitude", "error", "random"]
MOST = 2**31 - 1  # weights of a matrix whose places are int32


class Outliers(Matrixwise):
    """Rounds as `quantiser` does, and marks the `share` of each matrix that is to learn."""

    def __init__(self, quantiser: Matrixwise, share: float, score: Score, seed: int) -> None:
        self.quantiser, self.share, self.score = quantiser, share, score
        self.looks_at = quantiser.looks_at
        self.generator = torch.Generator().manual_seed(seed)

    def hold(self, weight: Tensor, before: Held | None, inputs: Inputs | None, dtype: torch.dtype) -> Patched:
        base = self.quantiser.hold(weight, before, inputs, dtype)
        places = highest(scores(weight, base.decode(), self.score, self.generator), self.share)
        return Patched(base.shape, base, places, torch.zeros(len(places), dtype=torch.bfloat16, device=places.device))


def scores(weight: Tensor, rounded: Tensor, score: Score, generator: torch.Generator) -> Tensor:
    """(O, I) of a matrix and of what it was rounded to."""
    if score == "magnitude":
        return (weight - weight.mean()).abs()
    if score == "error":
        return (weight - rounded).abs()
    return torch.rand(weight.shape, generator=generator).to(weight.device)


def highest(scores: Tensor, share: float) -> Tensor:
    """(n,) int32, rising: where in the matrix, row by row, the highest are."""
    if scores.numel() > MOST:
        raise UserError(f"{scores.numel()} weights are more than an int32 can count")
    count = max(1, int(share * scores.numel() + 0.5))
    return scores.flatten().topk(count).indices.sort().values.int()
