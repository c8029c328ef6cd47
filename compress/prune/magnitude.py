"""The smallest weights are left out: importance |w|."""

from __future__ import annotations

from torch import Tensor

from compress.calibration import Inputs
from compress.pruning import Pruner


class Magnitude(Pruner):
    def importance(self, weight: Tensor, inputs: Inputs | None) -> Tensor:
        return weight.abs()
