"""Weights that keep changing, held compressed each time anew: what a policy goes through on its way to its engines.

    encode    W → Held        the learner's half, at every sync; there is no calibration, and no state from one sync to the next
    decode    Held → Ŵ        the engine's half, by `compress.held.read` alone

Methods that round or prune do all they do at every sync, from the weights themselves, so that no error adds up. An update that
is smaller than their step is invisible until enough of them have come together.

Vector quantisation is fitted once, to the model that the policy starts from, so that a run that is resumed has the same. From
then on masks and assignments stay, and every sync takes new codewords, in bfloat16, the means of what they stand for
(`compress.formats.codebook`). So what all the runs of weights of a codeword do together is seen, however small it is, and what
each does by itself is not, so that the copy grows old. With `reassign` k it does not: every sync prunes anew, and goes k steps
of k-means from the first codewords.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.calibration import matrices, of_matrix
from compress.formats.codebook import Codebook
from compress.held import Held
from compress.method import Matrixwise
from compress.vector_quantiser import VectorQuantiser
from rlcore import plugins
from rlcore.errors import UserError

Named = tuple[str, Mapping[str, Any]]  # a method and its options, as a recipe has them
Step = Matrixwise | VectorQuantiser


class Codec(ABC):
    """`names`: of the weights that it compresses."""

    names: frozenset[str]

    @abstractmethod
    def encode(self, name: str, weight: Tensor) -> Held:
        """The weight (O, I) of that name as it is now. Raises UserError, naming it, where it cannot be held so."""


class Anew(Codec):
    """All methods, at every sync. `model` tells the names; its weights are not looked at."""

    def __init__(self, methods: Sequence[Step], model: PreTrainedModel, dtype: torch.dtype, keep_dense: Sequence[str]) -> None:
        self.methods, self.dtype = methods, dtype
        self.names = frozenset(matrices(model, keep_dense))

    def encode(self, name: str, weight: Tensor) -> Held:
        return _held(self.methods, name, weight, self.dtype)


class Fitted(Codec):
    """Codebooks that were fitted to the policy's first weights, whose masks and assignments stay."""

    def __init__(self, books: Mapping[str, Codebook]) -> None:
        self.books, self.names = books, frozenset(books)

    def encode(self, name: str, weight: Tensor) -> Held:
        return self.books[name].refitted(weight)


class Reassigned(Fitted):
    """The same, from whose codewords every sync goes so many steps of k-means, by masks that are made anew."""

    def __init__(
        self,
        books: Mapping[str, Codebook],
        pruners: Sequence[Step],
        quantiser: VectorQuantiser,
        steps: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(books)
        self.pruners, self.quantiser, self.steps, self.dtype = pruners, quantiser, steps, dtype

    @torch.no_grad()
    def encode(self, name: str, weight: Tensor) -> Held:
        pruned = _held(self.pruners, name, weight, self.dtype) if self.pruners else None
        now = weight.float() if pruned is None else pruned.decode()
        with of_matrix(name):
            return self.quantiser.hold_again(now, pruned, self.books[name], self.steps)


def codec(
    methods: Sequence[Named],
    keep_dense: Sequence[str],
    dtype: torch.dtype,
    shapes: Callable[[], PreTrainedModel],
    start: Callable[[], PreTrainedModel],
    reassign: int = 0,
) -> Codec:
    """`dtype` is what weights are served in. `shapes` gives the model without its weights; `start` with those that the policy
    starts from, for methods that are fitted. Raises UserError as `bound` does, and, naming the matrix, for one that cannot be
    compressed."""
    steps = bound(methods, reassign)
    if not isinstance(steps[-1], VectorQuantiser):
        return Anew(steps, shapes(), dtype, keep_dense)
    model = start()
    fitted = {name: _held(steps, name, weight, dtype) for name, weight in matrices(model, keep_dense).items()}
    books = {name: held for name, held in fitted.items() if isinstance(held, Codebook)}
    if not reassign:
        return Fitted(books)
    return Reassigned(books, steps[:-1], steps[-1], reassign, dtype)


def bound(methods: Sequence[Named], reassign: int = 0) -> list[Step]:
    """The methods, without a model. Raises UserError for those that cannot be done to weights that keep changing."""
    made = [plugins.bind("compress", name, options)() for name, options in methods]
    for (name, _), method in zip(methods, made, strict=True):
        if not isinstance(method, Matrixwise | VectorQuantiser):
            raise UserError(f"{name} learns from text, for which there is no time between two steps of a policy")
        if method.looks_at != "nothing":
            raise UserError(f"{name} looks at calibration text, and a policy that is compressed at every sync has none")
        if method.activations is not None:
            raise UserError(f"{name}: engines decode weights, and compute with inputs as they are: leave out `activations`")
        if isinstance(method, VectorQuantiser) and (method is not made[-1] or method.shared):
            raise UserError(f"{name} comes last, with a codebook for each matrix: leave out what follows it, and `shared`")
    if reassign and not isinstance(made[-1], VectorQuantiser):
        raise UserError(
            "rollout.compression.reassign is for vq and mvq; other methods do all they do at every sync: leave it out"
        )
    return made


@torch.no_grad()
def trial(methods: Sequence[Named], keep_dense: Sequence[str], dtype: torch.dtype, model: PreTrainedModel) -> dict[str, int]:
    """Bytes of each weight that would be compressed, found by compressing zeros. `model` tells the shapes. Raises UserError as
    `codec` does."""
    steps, sizes = bound(methods), dict[tuple[int, ...], int]()
    weights = matrices(model, keep_dense)
    for name, weight in weights.items():
        if (shape := tuple(weight.shape)) not in sizes:
            held = _held(steps, name, torch.zeros(shape), dtype)
            held = held.refitted(torch.zeros(shape)) if isinstance(held, Codebook) else held
            sizes[shape] = sum(tensor.nbytes for _, tensor in held.tensors())
    return {name: sizes[tuple(weight.shape)] for name, weight in weights.items()}


@torch.no_grad()
def _held(methods: Sequence[Step], name: str, weight: Tensor, dtype: torch.dtype) -> Held:
    """One method after the other."""
    held: Held | None = None
    with of_matrix(name):
        for method in methods:
            now = weight.float() if held is None else held.decode()
            held = method.hold(now, held, None, dtype)
    assert held is not None  # there is a method
    return held
