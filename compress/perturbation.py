"""Changes of vectors that differ in their shape and not in their size ("What Makes Quantization for Large Language Models Hard?
An Empirical Study from the Lens of Perturbation", arXiv 2403.06408). Of a vector w, with a relative strength α,

    w̃ = w + Δ,   ‖Δ‖₂ = α ‖w‖₂          for every kind;   Δ = α ‖w‖ δ / ‖δ‖, but for clipping

    gaussian    δ = ε                    ε ~ N(0, 1)
    uniform     δ = u                    u ~ U(−1, 1)
    sign        δ = r                    r = ±1, each half of the time (Rademacher)
    positive    δ = |w| ε                large entries are moved most
    negative    δ = (max |w| − |w|) ε    small entries are moved most
    clipping    w̃ = clip(w, ±c)          c such that ‖w̃ − w‖ = α ‖w‖, by bisection

`gaussian`, `positive` and `negative` of one seed share their ε, so that they differ in nothing else. That |w| scales the noise,
and not another rising function of it, is our reading of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from rlcore.errors import UserError
from rlcore.recipe.schema import Perturbation

HALVINGS = 40  # of the interval in which c lies: beyond what float32 can tell


def perturbed(vectors: Tensor, kind: Perturbation, strength: float, noise: Generator) -> Tensor:
    """(..., n) float32: each of the vectors of n with a change of its own. A vector of zeros stays one. Raises UserError for
    clipping at a strength of 1 or more, where nothing is left to be clipped."""
    size = strength * _norm(vectors)
    if kind == "clipping":
        if strength >= 1:
            raise UserError(f"clipping to zero changes a vector by its norm: a strength of {strength:g} cannot be reached")
        return _clipped(vectors, size)
    direction = DIRECTIONS[kind](vectors, noise)
    return vectors + direction * (size / _norm(direction).clamp_min(torch.finfo(vectors.dtype).tiny))


def perturbed_matrix(matrix: Tensor, kind: Perturbation, strength: float, noise: Generator) -> Tensor:
    """(O, I): the whole of it as one vector."""
    return perturbed(matrix.reshape(-1), kind, strength, noise).view_as(matrix)


def _norm(vectors: Tensor) -> Tensor:
    """(..., 1). Sums are taken pairwise, which torch's own norm does not: of a million numbers that one is off by 1e-5."""
    return vectors.square().sum(-1, keepdim=True).sqrt()


def _gaussian(w: Tensor, noise: Generator) -> Tensor:
    return torch.randn(w.shape, generator=noise, device=w.device, dtype=w.dtype)


def _uniform(w: Tensor, noise: Generator) -> Tensor:
    return 2 * torch.rand(w.shape, generator=noise, device=w.device, dtype=w.dtype) - 1


def _sign(w: Tensor, noise: Generator) -> Tensor:
    return torch.randint(0, 2, w.shape, generator=noise, device=w.device).to(w.dtype) * 2 - 1


def _positive(w: Tensor, noise: Generator) -> Tensor:
    return w.abs() * _gaussian(w, noise)


def _negative(w: Tensor, noise: Generator) -> Tensor:
    return (w.abs().amax(-1, keepdim=True) - w.abs()) * _gaussian(w, noise)


DIRECTIONS: Mapping[str, Callable[[Tensor, Generator], Tensor]] = {
    "gaussian": _gaussian,
    "uniform": _uniform,
    "sign": _sign,
    "positive": _positive,
    "negative": _negative,
}


def _clipped(vectors: Tensor, size: Tensor) -> Tensor:
    """The change falls from ‖w‖ to 0 as c goes from 0 to max |w|."""
    magnitude = vectors.abs()
    high = magnitude.amax(-1, keepdim=True)
    low = torch.zeros_like(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        too_much = _norm((magnitude - middle).relu_()) > size
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return vectors.clamp(-high, high)
