"""What the methods of `compress/recover` have in common: matrices become functions of a few parameters, these learn from the
dense model (`compress.distil`), and the matrices are held as what came of them. Norms and biases learn with them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn.utils import parametrize

from compress.calibration import Calibration
from compress.compressed import CompressedModel
from compress.distil import distil
from compress.held import Held
from compress.method import Method
from rlcore.protocols import Progress, no_progress

LearningRate = Annotated[float, Field(gt=0)]


class Recovery(Method):
    learns = True

    def __init__(self, steps: int, learning_rate: float, seed: int) -> None:
        self.steps, self.learning_rate, self.seed = steps, learning_rate, seed

    def work(self, matrices: int) -> int:
        return self.steps

    @abstractmethod
    def learning(self, compressed: CompressedModel, calibration: Calibration) -> Mapping[str, nn.Module]:
        """By the name of a matrix the module that gives it, asked with the matrix as it is now; its parameters learn. Raises
        UserError where there is nothing to recover."""

    @abstractmethod
    def learned(self, name: str, module: nn.Module, compressed: CompressedModel) -> Held:
        """What came of it: `compressed.model` has the matrix that the module gives."""

    def fit(
        self, compressed: CompressedModel, calibration: Calibration, keep_dense: Sequence[str], progress: Progress = no_progress
    ) -> CompressedModel:
        model = compressed.model
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            modules = self.learning(compressed, calibration)
        beside = [parameter for parameter in model.parameters() if parameter.ndim == 1]
        own = dict.fromkeys(parameter for module in modules.values() for parameter in module.parameters())  # shared ones once
        for name, module in modules.items():
            parametrize.register_parametrization(model.get_submodule(name.removesuffix(".weight")), "weight", module)
        distil(
            model,
            calibration,
            [*own, *beside],
            steps=self.steps,
            learning_rate=self.learning_rate,
            seed=self.seed,
            progress=progress,
        )
        for name in modules:
            parametrize.remove_parametrizations(model.get_submodule(name.removesuffix(".weight")), "weight")
        return compressed.holding({name: self.learned(name, module, compressed) for name, module in modules.items()})
