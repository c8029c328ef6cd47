"""A reward model that `job: reward_model` trained, with its own way of writing and the temperature that calibrates it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import PositiveInt
from torch import Tensor
from transformers import PreTrainedModel

from rewards.judged_text import Asked, Row, load_judged_text
from rewards.reader import TOKENS, Dtype, Reader, shared, two_classes
from rewards.trained_on import trained_on
from rlcore.models import ModelSpec, locate


class Trained(Reader):
    """`model`: the job's run folder, or the `model` in it. `tokens`: of a pass, padding included."""

    def __init__(self, *, model: str, dtype: Dtype = "float32", device: str = "auto", tokens: PositiveInt = TOKENS) -> None:
        spec = ModelSpec(locate(model), dtype, device)
        self.text = load_judged_text(Path(spec.location))
        self.of_solutions = self.text.kind == "orm"
        self.steps_end_with = self.text.separator
        self.trained_on = trained_on(Path(spec.location))
        super().__init__(spec, tokens)

    def read_weights(self) -> PreTrainedModel:
        return self.spec.load_with_head(2, self.text.head)

    def rows(self, asked: Sequence[Asked]) -> list[Row]:
        return list(shared(self.text.rows(asked, self.tokenizer)))

    def found(self, rows: Sequence[Row], ids: Tensor) -> Tensor:
        return two_classes(self.model, rows, ids) / self.text.temperature
