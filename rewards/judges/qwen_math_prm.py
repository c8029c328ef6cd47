"""Qwen2.5-Math-PRM (Zhang et al. 2025, arXiv 2501.07301): a chat with the token <extra_0> after every step.

log P(right)/P(wrong) = z_1 − z_0,   z = W_2 relu(W_1 h + b_1) + b_2,   h: the last hidden state at the step's <extra_0>
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import PositiveInt
from torch import Tensor, nn
from transformers import Qwen2Model, Qwen2PreTrainedModel

from rewards.judged_text import Asked, Row
from rewards.reader import TOKENS, Dtype, Reader, running, two_classes
from rlcore.models import ModelSpec, locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Qwen2Config


class QwenMathPrm(Reader):
    """`model`: Qwen/Qwen2.5-Math-PRM-7B, Qwen/Qwen2.5-Math-PRM-72B, Qwen/Qwen2.5-Math-7B-PRM800K, or one of their shape.
    `system`: what the system says. Steps that policies divide by empty lines are what it was trained on."""

    kind = "Qwen2.5-Math-PRM"

    def __init__(
        self,
        *,
        model: str,
        dtype: Dtype = "float32",
        device: str = "auto",
        tokens: PositiveInt = TOKENS,
        system: str = "Please reason step by step, and put your final answer within \\boxed{}.",
    ) -> None:
        super().__init__(ModelSpec(locate(model), dtype, device), tokens)
        self.system, self.separator = system, self.single_token("<extra_0>")
        self.chat(("user", ""))  # refused before anything large is loaded

    def read_weights(self) -> PreTrainedModel:
        return self.weights_of(_Qwen2WithTwoLayerHead)

    def rows(self, asked: Sequence[Asked]) -> list[Row]:
        return running(asked, self._pieces)

    def _pieces(self, problem: str, steps: tuple[str, ...]) -> tuple[list[int], list[list[int]]]:
        before = self.encode(self.chat(("system", self.system), ("user", problem), reply=True))
        return before, [[*self.encode(step), self.separator] for step in steps]

    def found(self, rows: Sequence[Row], ids: Tensor) -> Tensor:
        return two_classes(self.model, rows, ids)


class _Qwen2WithTwoLayerHead(Qwen2PreTrainedModel):
    """In the place of the class that the checkpoint brings as code of its own."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        width = config.hidden_size
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        self.post_init()
