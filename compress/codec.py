"""Weights that keep changing, held compressed each time anew: what a policy goes through on its way to the engines that serve it.

    encode    W → Held        the learner's half, at every sync; there is no calibration, and no state from one sync to the next
    decode    Held → Ŵ        the engine's half, by `compress.held.read` alone

Methods that round or prune do all they do at every sync, from the weights themselves, so that nothing adds up. An update that is
smaller than their step is invisible until enough of them have come together. Vector quantisation is fitted once, to the model
that the policy starts from, so that a run that is resumed has the same; from then on masks and assignments stay, and every sync
takes new codewords, in bfloat16, the means of what they stand for (`compress.formats.codebook`). So updates are seen that whole
runs of weights have in common, however small, and what a run does by itself is not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.calibration import Calibration, matrices
from compress.compressed import CompressedModel
from compress.formats.codebook import Codebook
from compress.held import Held
from compress.method import Matrixwise, Method, fit
from compress.vector_quantiser import VectorQuantiser
from rlcore import plugins
from rlcore.errors import UserError

Named = tuple[str, Mapping[str, Any]]  # a method and its options, as a recipe has them


class Codec(ABC):
    """`shapes`: of the weights that it compresses, by name."""

    shapes: Mapping[str, tuple[int, ...]]

    @abstractmethod
    def encode(self, name: str, weight: Tensor) -> Held:
        """The weight (O, I) of that name as it is now. Raises UserError, naming it, where it cannot be held so."""


class Anew(Codec):
    """The matrixwise methods, one after the other, at every sync. `model` tells the shapes; its weights are not looked at."""

    def __init__(
        self, methods: Sequence[Matrixwise], model: PreTrainedModel, dtype: torch.dtype, keep_dense: Sequence[str]
    ) -> None:
        self.methods, self.about = methods, CompressedModel(model, dtype)
        self.shapes = {name: tuple(weight.shape) for name, weight in matrices(model, keep_dense).items()}

    def encode(self, name: str, weight: Tensor) -> Held:
        held: Held | None = None
        try:
            for method in self.methods:
                held = method.hold(weight.float() if held is None else held.decode(), held, None, self.about)
        except UserError as error:
            raise UserError(f"{name}: {error}; choose other numbers, or name it in keep_dense") from error
        assert held is not None  # there is a method
        return held


class Fitted(Codec):
    """Codebooks that were fitted to the policy's first weights."""

    def __init__(self, books: Mapping[str, Codebook]) -> None:
        self.books = books
        self.shapes = {name: book.shape for name, book in books.items()}

    def encode(self, name: str, weight: Tensor) -> Held:
        return self.books[name].refitted(weight)


def bound(methods: Sequence[Named]) -> list[Method]:
    """The methods, without a model. Raises UserError for those that cannot be done to weights that keep changing."""
    made: list[Method] = [plugins.bind("compress", name, options)() for name, options in methods]
    for (name, _), method in zip(methods, made, strict=True):
        if not isinstance(method, Matrixwise | VectorQuantiser):
            raise UserError(f"{name} learns from text: between two steps of a policy there is no time for that")
        if method.looks_at != "nothing":
            raise UserError(f"{name} looks at calibration text, and a policy that is compressed at every sync has none")
        if getattr(method, "activations", None) is not None:
            raise UserError(f"{name}: engines compute with the weights that they decode, and their inputs as they are")
        if isinstance(method, VectorQuantiser) and (method is not made[-1] or method.shared):
            raise UserError(f"{name} comes last, with a codebook for each matrix: leave out what follows, and `shared`")
    return made


def codec(
    methods: Sequence[Named],
    keep_dense: Sequence[str],
    dtype: torch.dtype,
    shapes: Callable[[], PreTrainedModel],
    start: Callable[[], PreTrainedModel],
) -> Codec:
    """`dtype` is what weights are served in. `shapes` gives the model without its weights; `start` with those that the policy
    starts from, for methods that are fitted, which change it. Raises UserError as `bound` does, and, naming the matrix, for one
    that cannot be compressed."""
    made = bound(methods)
    if isinstance(made[-1], VectorQuantiser):
        steps = [(name, options, method) for (name, options), method in zip(methods, made, strict=True)]
        return _fitted(steps, CompressedModel(start(), dtype), keep_dense)
    return Anew([method for method in made if isinstance(method, Matrixwise)], shapes(), dtype, keep_dense)


def _fitted(
    methods: Sequence[tuple[str, Mapping[str, Any], Method]], start: CompressedModel, keep_dense: Sequence[str]
) -> Fitted:
    nothing = Calibration(torch.empty(0, 0, dtype=torch.long), lambda: start.model)
    fitted = fit(start, methods, nothing, keep_dense)
    return Fitted({name: held for name, held in fitted.held.items() if isinstance(held, Codebook)})
