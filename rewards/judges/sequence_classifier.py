"""An ordinary reward model of whole texts: one number for what stands there so far, without bounds.

It was trained on pairs (Bradley and Terry 1952): P(a is better than b) = σ(r_a − r_b). So r is a log-odds up to a constant that
is the same for all solutions of a problem; here the constant is taken for 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rewards.judged_text import Asked, JudgedText, Row
from rewards.reader import TOKENS, Dtype, Reader, at_ends
from rlcore.errors import UserError
from rlcore.models import ModelSpec, locate


class SequenceClassifier(Reader):
    """`model`: of the kind AutoModelForSequenceClassification, with one label. `template`: what it reads, with {problem} and
    {current} for the steps so far; without one, a user's turn and an assistant's in its chat template. `separator`: between
    steps."""

    kind = "sequence classifier of one score"
    of_solutions = True

    def __init__(
        self,
        *,
        model: str,
        dtype: Dtype = "float32",
        device: str = "auto",
        tokens: PositiveInt = TOKENS,
        template: str = "",
        separator: str = "\n\n",
    ) -> None:
        super().__init__(ModelSpec(locate(model), dtype, device), tokens)
        if not template and not self.tokenizer.chat_template:
            raise UserError(f"model {self.spec.location!r} has no chat template: give `template`")
        if template and not ("{problem}" in template and "{current}" in template):
            raise UserError(f"sequence_classifier: template {template!r} must contain {{problem}} and {{current}}")
        self.template = JudgedText("orm", "text", template, separator) if template else None
        self.separator = separator

    def read_weights(self) -> PreTrainedModel:
        model = self.weights_of(AutoModelForSequenceClassification)
        if model.config.num_labels != 1:
            raise self.refusal(f"single score, but {model.config.num_labels}")
        return model

    def rows(self, asked: Sequence[Asked]) -> list[Row]:
        texts = [self._written(each.problem, each.previous + each.current) for each in asked]
        return [Row(tuple(ids), (self._end(ids),), (i,)) for i, ids in enumerate(texts)]

    def _written(self, problem: str, steps: tuple[str, ...]) -> list[int]:
        if self.template:
            ids: list[int] = self.tokenizer(self.template.write(Asked(problem, (), steps))).input_ids
            return ids
        return self.encode(self.chat(("user", problem), ("assistant", self.separator.join(steps))))

    def _end(self, ids: Sequence[int]) -> int:
        """Where transformers reads: at the last token that is not the one of padding, which may be that of a turn's end too."""
        return max((i for i, token in enumerate(ids) if token != self.model.config.pad_token_id), default=0)

    def found(self, rows: Sequence[Row], ids: Tensor) -> Tensor:
        if hasattr(self.model, "score"):  # a decoder; an encoder has a head of its own, and sees what comes after
            return self.model.score(at_ends(self.model, rows, ids)).float()[:, 0]
        mask = torch.tensor([[i < len(row.ids) for i in range(ids.shape[1])] for row in rows], device=ids.device)
        return self.model(input_ids=ids, attention_mask=mask.long()).logits.float()[:, 0]
