"""A model whose matrices, or what they are given, are other for a while; and by how much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from compress import calibration
from compress.activations import change_inputs


@dataclass(frozen=True)
class Change:
    """None: they stay as they are."""

    of_matrix: Callable[[Tensor], Tensor] | None = None  # (O, I) → (O, I)
    of_inputs: Callable[[Tensor], Tensor] | None = None  # (..., I) → (..., I), each row by itself


@dataclass
class Norm:
    """√( Σ ‖x̃ − x‖² / Σ ‖x‖² ) over all that was changed; None where nothing was."""

    lost: Tensor | float = 0.0
    whole: Tensor | float = 0.0

    def of(self, before: Tensor, after: Tensor) -> Tensor:
        """`after`, which is added to it."""
        self.lost += (after - before).square().sum()
        self.whole += before.square().sum()
        return after

    @property
    def value(self) -> float | None:
        return float(self.lost / self.whole) ** 0.5 if self.whole else None


@dataclass(frozen=True)
class Norms:
    weights: Norm = field(default_factory=Norm)
    inputs: Norm = field(default_factory=Norm)  # padding counts too


@contextmanager
def altered(model: nn.Module, weights: Mapping[str, nn.Parameter], change: Change) -> Iterator[Norms]:
    """Within it these matrices, and what they are given, are changed; after it they are as before, to the bit. Raises
    UserError, naming the matrix, for one that cannot be changed so."""
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    norms, handles = Norms(), []
    try:
        if (of_matrix := change.of_matrix) is not None:
            for name, weight in before.items():
                with calibration.of_matrix(name):
                    weights[name].data.copy_(norms.weights.of(weight, of_matrix(weight)))
        if (of_inputs := change.of_inputs) is not None:
            handles = change_inputs(model, list(weights), lambda inputs: norms.inputs.of(inputs, of_inputs(inputs)))
        yield norms
    finally:
        for handle in handles:
            handle.remove()
        for name, weight in before.items():
            weights[name].data.copy_(weight)
