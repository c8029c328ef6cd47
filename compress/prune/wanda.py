"""Weights are left out by how little they add to what comes out: importance |w_ij| · ‖x_j‖₂ (Sun et al., arXiv 2306.11695)."""

from __future__ import annotations

from torch import Tensor

from compress.calibration import Inputs
from compress.pruning import Pruner


class Wanda(Pruner):
    looks_at = "norms"

    def importance(self, weight: Tensor, inputs: Inputs | None) -> Tensor:
        assert inputs is not None
        return weight.abs() * inputs.norms
