"""Math-Shepherd (Wang et al. 2024, arXiv 2312.08935): a language model that says + or − after the token ки behind every step.

{problem} Step 1: … ки
Step 2: … ки

log P(right)/P(wrong) = logit(+) − logit(−) at the step's ки
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import PositiveInt
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rewards.judged_text import Asked, JudgedText, Row
from rewards.reader import TOKENS, Dtype, Reader, next_token_odds
from rlcore.models import ModelSpec, locate

LAYOUT = JudgedText("prm", "token", "{problem} {steps}", " ки")


class MathShepherd(Reader):
    """`model`: peiyi9979/math-shepherd-mistral-7b-prm, or one of its shape. Steps that do not begin with `Step N` get it: so
    all begin that it was trained on."""

    kind = "Math-Shepherd"

    def __init__(self, *, model: str, dtype: Dtype = "float32", device: str = "auto", tokens: PositiveInt = TOKENS) -> None:
        super().__init__(ModelSpec(locate(model), dtype, device), tokens)
        self.single_token("ки")
        self.right, self.wrong = self.single_token("+"), self.single_token("-")

    def read_weights(self) -> PreTrainedModel:
        return self.weights_of(AutoModelForCausalLM)

    def rows(self, asked: Sequence[Asked]) -> list[Row]:
        return LAYOUT.rows([Asked(each.problem, (), _numbered(each.previous + each.current)) for each in asked], self.tokenizer)

    def found(self, rows: Sequence[Row], ids: Tensor) -> Tensor:
        return next_token_odds(self.model, rows, ids, self.right, self.wrong)


def _numbered(steps: Sequence[str]) -> tuple[str, ...]:
    stripped = [step.strip() for step in steps]
    named = [step if re.match(r"step \d", step, re.IGNORECASE) else f"Step {i}: {step}" for i, step in enumerate(stripped, 1)]
    return tuple(f"\n{step}" if i else step for i, step in enumerate(named))
