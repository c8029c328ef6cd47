"""RLHFlow's PRMs: a chat in which the user says a step a turn, and the assistant + or −.

    log P(right)/P(wrong) = logit(+) − logit(−) where the assistant's turn after the step begins

The problem stands before the first step, with a space between. To the steps before the assistant said +, whatever they are: so
their authors score.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import PositiveInt
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rewards.judged_text import Asked, Row
from rewards.reader import TOKENS, Dtype, Reader, next_token_odds, running
from rlcore.errors import UserError
from rlcore.models import ModelSpec, locate


class Rlhflow(Reader):
    """`model`: RLHFlow/Llama3.1-8B-PRM-Deepseek-Data, RLHFlow/Llama3.1-8B-PRM-Mistral-Data, or one of their shape."""

    kind = "RLHFlow PRM"

    def __init__(self, *, model: str, dtype: Dtype = "float32", device: str = "auto", tokens: PositiveInt = TOKENS) -> None:
        super().__init__(ModelSpec(locate(model), dtype, device), tokens)
        self.right, self.wrong = self.single_token("+"), self.single_token("-")
        self._pieces("", ("", ""))  # refused before anything large is loaded

    def read_weights(self) -> PreTrainedModel:
        return self.weights_of(AutoModelForCausalLM)

    def rows(self, asked: Sequence[Asked]) -> list[Row]:
        return running(asked, self._pieces)

    def _pieces(self, problem: str, steps: tuple[str, ...]) -> tuple[list[int], list[list[int]]]:
        turns: list[tuple[str, str]] = []
        pieces, text = [], ""
        for count, step in enumerate(steps):
            turns += [("user", step.strip() if count else f"{problem} {step.strip()}")]
            longer = self.chat(*turns, reply=True)
            if not longer.startswith(text):
                raise UserError(f"model {self.spec.location!r}: its chat template writes a turn otherwise when others follow")
            pieces.append(self.encode(longer[len(text) :]))
            text = longer
            turns += [("assistant", "+")]
        return [], pieces

    def found(self, rows: Sequence[Row], ids: Tensor) -> Tensor:
        return next_token_odds(self.model, rows, ids, self.right, self.wrong)
