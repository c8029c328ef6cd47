"""Skywork-o1-Open-PRM: the problem on a line, then the steps, each with a line break after it.

    log P(right)/P(wrong) = w·h + b,   h: the last hidden state at the line break after the step

Its authors' reward is σ of that. Problem, steps and line breaks are turned into tokens each by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import PositiveInt
from torch import Tensor, nn
from transformers import Qwen2Model, Qwen2PreTrainedModel

from rewards.judged_text import Asked, Row
from rewards.reader import TOKENS, Dtype, Reader, at_ends, running
from rlcore.models import ModelSpec, locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Qwen2Config


class SkyworkPrm(Reader):
    """`model`: Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B, …-7B, or one of their shape. `separator`: after a step, one token."""

    kind = "Skywork-o1-Open-PRM"

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
        if not self.tokenizer.bos_token:
            raise self.refusal("token for the beginning of a text")
        self.separator = self.single_token(separator)

    def read_weights(self) -> PreTrainedModel:
        return self.weights_of(_Qwen2WithValueHead)

    def rows(self, asked: Sequence[Asked]) -> list[Row]:
        return running(asked, self._pieces)

    def _pieces(self, problem: str, steps: tuple[str, ...]) -> tuple[list[int], list[list[int]]]:
        before = self.encode(f"{self.tokenizer.bos_token}{problem}\n")
        return before, [[*self.encode(step), self.separator] for step in steps]

    def found(self, rows: Sequence[Row], ids: Tensor) -> Tensor:
        return self.model.v_head["summary"](at_ends(self.model, rows, ids)).float()[:, 0]


class _Qwen2WithValueHead(Qwen2PreTrainedModel):
    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.v_head = nn.ModuleDict({"summary": nn.Linear(config.hidden_size, 1)})
        self.post_init()
