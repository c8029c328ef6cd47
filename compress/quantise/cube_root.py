"""Rounding in the domain of cube roots, so that small weights, which a model is most sensitive to, are moved least.

    y = sign(w) |w|^{1/3},   q = round(y / s),   ŵ = (s q)³

("What Makes Quantization for Large Language Models Hard? An Empirical Study from the Lens of Perturbation",
arXiv 2403.06408.) On light-tailed weights in short runs its squared error is above round-to-nearest's; it gains where few
weights are far larger than the others: whole rows, activations.
"""

from __future__ import annotations

from compress.rounding import Rounding


class CubeRoot(Rounding):
    grid = "cube"
