"""Which weights of a quantised matrix are to learn (PreQuant, arXiv 2306.00014; the paper's own choice is not certain)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Score = Literal["magnitude", "error", "random"]


def outliers(weight: Tensor, quantised: Tensor, share: float, score: Score, seed: int) -> Tensor:
    """Places (n,) long, row by row and rising, of the `share` of a matrix's weights (one at least) with the highest score:
    |w − mean|, |w − ŵ|, or drawn by `seed`."""
    count = max(1, int(share * weight.numel()))
    if score == "random":
        return torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    scores = (weight - weight.mean()).abs() if score == "magnitude" else (weight - quantised).abs()
    return scores.reshape(-1).topk(count).indices.sort().values
