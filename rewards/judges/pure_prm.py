"""PURE's PRM (Cheng et al. 2025, arXiv 2504.15275), a token classifier: the problem, then the steps, a line break after each.

    log P(right)/P(wrong) = z_1 − z_0,   z: the two logits at the line break after the step

PURE's process reward is P(right) − P(wrong) = tanh(½ log-odds). Problem, steps and line breaks are turned into tokens each by
itself, and nothing stands between the problem and the first step: so it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import PositiveInt
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedModel

from rewards.judged_text import Asked, Row
from rewards.reader import TOKENS, Dtype, Reader, running, two_classes
from rlcore.models import ModelSpec, locate


class PurePrm(Reader):
    """`model`: jinachris/PURE-PRM-7B, or any token classifier of two classes that TRL's trainer of process reward models wrote.
    `separator`: what that was given as the separator of steps."""

    kind = "token classifier of two classes"

    def __init__(
        self,
        *,
        model: str,
        dtype: Dtype = "float32",
        device: str = "auto",
        tokens: PositiveInt = TOKENS,
        separator: str = "\n",
    ) -> None:
        super().__init__(ModelSpec(locate(model), dtype, device), tokens)
        self.separator = self.encode(separator)

    def read_weights(self) -> PreTrainedModel:
        model = self.weights_of(AutoModelForTokenClassification)
        if model.config.num_labels != 2:
            raise self.refusal(f"two labels, but {model.config.num_labels}")
        return model

    def rows(self, asked: Sequence[Asked]) -> list[Row]:
        return running(asked, self._pieces)

    def _pieces(self, problem: str, steps: tuple[str, ...]) -> tuple[list[int], list[list[int]]]:
        return self.encode(problem), [[*self.encode(step.rstrip()), *self.separator] for step in steps]

    def found(self, rows: Sequence[Row], ids: Tensor) -> Tensor:
        return two_classes(self.model, rows, ids)
