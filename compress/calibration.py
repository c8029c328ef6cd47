"""Text that methods look at, as rows of tokens; and what the matrices of a model are given while it reads them.

Layers are walked from the bottom up, one at a time (Wanda, SparseGPT): what a layer is given is what the compressed layers
below it put out, so that each can make up for some of what those lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlcore.errors import UserError

Statistics = Literal["nothing", "norms", "gram"]


@dataclass(frozen=True)
class Calibration:
    """`rows` (N, T) long: what is read. `dense` gives the model as it was before any method, for those that learn from it.
    `rows_at_once` bounds the memory of a pass."""

    rows: Tensor
    dense: Callable[[], PreTrainedModel]
    rows_at_once: int = 8

    def batches(self) -> tuple[Tensor, ...]:
        return self.rows.split(self.rows_at_once)


def packed(texts: Sequence[Sequence[int]], rows: int, length: int) -> Tensor:
    """(rows, length): texts of tokens one after the other, cut into rows. Raises UserError where they are too few."""
    wanted = rows * length
    flat = [token for text in texts for token in text][:wanted]
    if len(flat) < wanted:
        raise UserError(f"calibration asks for {rows} x {length} tokens, and its texts have {len(flat)}: ask for fewer")
    return torch.tensor(flat).view(rows, length)


@dataclass
class Inputs:
    """What a matrix was given: n vectors x of I numbers. `gram` is Σ x xᵀ (I, I), or its diagonal (I,) where that is enough."""

    gram: Tensor
    count: int = 0

    @property
    def mean_square(self) -> Tensor:
        """(I,) the mean of x²."""
        total = self.gram.diagonal() if self.gram.ndim == 2 else self.gram
        return total / max(1, self.count)

    @property
    def norms(self) -> Tensor:
        """(I,) √(mean of x²): Wanda's ‖X_j‖₂ but for a factor that all inputs have in common."""
        return self.mean_square.sqrt()


@dataclass(frozen=True)
class Layer:
    """The matrices of one layer of the model by the name of their parameter, and what they were given."""

    weights: Mapping[str, nn.Parameter]
    inputs: Mapping[str, Inputs] = field(default_factory=dict)


def matrices(model: PreTrainedModel, keep_dense: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The weights of the model's linear layers by name, without the embeddings, what is tied to them, and those whose name
    contains one of `keep_dense`. Raises UserError where nothing is left, or a part of `keep_dense` is in no name."""
    found = {f"{name}.weight": module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if unknown := [part for part in keep_dense if not any(part in name for name in found)]:
        raise UserError(f"keep_dense names {unknown[0]!r}, and no matrix is called that: {', '.join(list(found)[:3])}, …")
    embeddings = model.get_input_embeddings().weight
    kept = {
        name: weight
        for name, weight in found.items()
        if weight is not embeddings and not any(part in name for part in keep_dense)
    }
    if not kept:
        raise UserError("keep_dense leaves no matrix to compress")
    return kept


def by_layer(names: Iterable[str]) -> list[list[str]]:
    """The matrices of each layer of the model, from the bottom up; those outside of the layers come last."""
    places: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        number = re.search(r"\.(\d+)\.", name)
        places.setdefault((0, int(number[1])) if number else (1,), []).append(name)
    return [places[place] for place in sorted(places)]


@contextmanager
def of_matrix(name: str) -> Iterator[None]:
    """Within it a UserError is about this matrix, and says so."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}; choose other numbers, or name it in keep_dense") from error


@torch.no_grad()
def walk(
    model: PreTrainedModel, weights: Mapping[str, nn.Parameter], calibration: Calibration, statistics: Statistics
) -> Iterator[Layer]:
    """The layers from the bottom up. Whoever takes one may change its weights before taking the next. Matrices outside of the
    layers, such as the head, come last, by what they are given then."""
    if statistics == "nothing":
        yield Layer(weights)
        return
    if len(set(getattr(model.config, "layer_types", None) or [])) > 1:
        raise UserError("the model's layers attend in several ways, and inputs can only be told where all do so in one")
    stack = model.get_decoder().layers
    prefix = next(name for name, module in model.named_modules() if module is stack)
    states = _entering(model, stack[0], calibration)
    for number, layer in enumerate(stack):
        own = {name: weight for name, weight in weights.items() if name.startswith(f"{prefix}.{number}.")}
        with _watching(model, own, statistics) as inputs:
            for hidden, settings in states:
                layer(hidden, **settings)
        yield Layer(own, inputs)
        states = [(_first(layer(hidden, **settings)), settings) for hidden, settings in states]
    if outside := {name: weight for name, weight in weights.items() if not name.startswith(f"{prefix}.")}:
        with _watching(model, outside, statistics) as inputs:
            for batch in calibration.batches():
                model(batch.to(model.device))
        yield Layer(outside, inputs)


def _entering(model: PreTrainedModel, first: nn.Module, calibration: Calibration) -> list[tuple[Tensor, dict[str, Any]]]:
    """What the first layer is called with: the states of each batch, and what else."""
    calls: list[tuple[Tensor, dict[str, Any]]] = []

    class Seen(Exception):
        pass

    def before(_: nn.Module, arguments: tuple[Any, ...], settings: dict[str, Any]) -> None:
        calls.append((arguments[0] if arguments else settings.pop("hidden_states"), settings))
        raise Seen

    handle = first.register_forward_pre_hook(before, with_kwargs=True)
    try:
        for batch in calibration.batches():
            try:
                model(batch.to(model.device), use_cache=False)
            except Seen:
                continue
    finally:
        handle.remove()
    return calls


class _watching:  # noqa: N801 (a context manager)
    """Within it, what these weights are given is summed up."""

    def __init__(self, model: PreTrainedModel, weights: Mapping[str, nn.Parameter], statistics: Statistics) -> None:
        self.modules = {name: model.get_submodule(name.removesuffix(".weight")) for name in weights}
        self.statistics = statistics
        self.inputs = {name: Inputs(self._zeros(weight)) for name, weight in weights.items()}
        self.handles: list[Any] = []

    def _zeros(self, weight: Tensor) -> Tensor:
        size = weight.shape[1]
        return torch.zeros(size, *([size] if self.statistics == "gram" else []), device=weight.device)

    def __enter__(self) -> dict[str, Inputs]:
        self.handles = [module.register_forward_pre_hook(self._adding(self.inputs[n])) for n, module in self.modules.items()]
        return self.inputs

    def _adding(self, inputs: Inputs) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            x = arguments[0].detach().reshape(-1, arguments[0].shape[-1]).float()
            inputs.gram += x.T @ x if inputs.gram.ndim == 2 else x.square().sum(0)
            inputs.count += len(x)

        return before

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def _first(output: Any) -> Tensor:
    """A layer's states: some kinds of model return more beside them."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
