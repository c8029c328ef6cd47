"""What every method is: something that is done to a model, and gives a model. Options are keyword arguments, as recipes name
them; a recipe's `methods` are done one after the other."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from compress.calibration import Calibration, Inputs, Statistics, matrices, of_matrix, walk
from compress.compressed import CompressedModel, as_stored
from compress.held import Held
from rlcore.protocols import Progress, no_progress


class Method(ABC):
    """`looks_at` is what it has to know of the matrices' inputs; `nothing`: it needs no calibration text."""

    looks_at: Statistics = "nothing"
    learns: bool = False  # True: by gradients, from calibration text and the dense model
    activations: int | None = None  # bits that the matrices' inputs are rounded to

    def work(self, matrices: int) -> int:
        """How much `progress` will hear of, for so many matrices."""
        return matrices

    @abstractmethod
    def fit(
        self, compressed: CompressedModel, calibration: Calibration, keep_dense: Sequence[str], progress: Progress = no_progress
    ) -> CompressedModel:
        """The model after it. `progress` hears how many matrices are done. Raises UserError, naming the matrix, for one that
        it cannot do. The model that was given is changed."""


class Matrixwise(Method):
    """A method that does one matrix after the other."""

    def fit(
        self, compressed: CompressedModel, calibration: Calibration, keep_dense: Sequence[str], progress: Progress = no_progress
    ) -> CompressedModel:
        weights = matrices(compressed.model, keep_dense)
        for layer in walk(compressed.model, weights, calibration, self.looks_at):
            for name, weight in layer.weights.items():
                with of_matrix(name):
                    before, inputs = compressed.held.get(name), layer.inputs.get(name)
                    done = self.hold(weight.detach().float(), before, inputs, compressed.dtype)
                compressed = compressed.holding({name: done})
                progress(1)
        return compressed

    @abstractmethod
    def hold(self, weight: Tensor, before: Held | None, inputs: Inputs | None, dtype: torch.dtype) -> Held:
        """A matrix (O, I), float32. `before`: how it is held so far; `inputs`: as `looks_at` says; `dtype`: that of
        weights which are stored as they are."""


def fit(
    compressed: CompressedModel,
    methods: Sequence[tuple[str, Mapping[str, Any], Method]],
    calibration: Calibration,
    keep_dense: Sequence[str],
    progress: Progress = no_progress,
) -> CompressedModel:
    """Do the methods, each given as its name, its options and itself, in their order. What is not held is left as it is
    stored."""
    for name, options, method in methods:
        since = time.perf_counter()
        compressed = method.fit(compressed, calibration, keep_dense, progress)
        done = {"method": name, **options, "seconds": round(time.perf_counter() - since, 1)}
        compressed = replace(compressed, history=(*compressed.history, done))
    as_stored(compressed.model, compressed.dtype, held=compressed.held)
    return compressed
