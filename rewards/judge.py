"""A trained reward model at work: how likely steps and solutions are right. Loaded from what `job: reward_model` wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rewards.judged_text import Asked, load_judged_text
from rlcore.batch import cut_by_length, pad
from rlcore.errors import UserError
from rlcore.models import ModelSpec, context, load_tokenizer

TOKENS = 16384  # of a pass, padding included


class Judge:
    """Every text is judged by itself: neither what it is batched with nor padding changes a score."""

    def __init__(self, folder: Path, *, dtype: str = "float32", device: str = "auto", tokens: int = TOKENS) -> None:
        self.text = load_judged_text(folder)
        self.tokenizer = load_tokenizer(str(folder))
        self.model = ModelSpec(str(folder), dtype, device).load_with_head(2, self.text.head).eval()
        self.context, self.tokens = context(str(folder)), tokens

    @torch.no_grad()
    def log_odds(self, asked: Sequence[Asked], progress: Callable[[int], None] = lambda done: None) -> list[float]:
        """log P(right)/P(wrong) of each, calibrated. Raises UserError for a text that is longer than the model's context."""
        rows = self.text.rows(asked, self.tokenizer)
        if (longest := max((len(row.ids) for row in rows), default=0)) > self.context:
            raise UserError(f"a text of {longest} tokens is longer than the reward model's context of {self.context}")
        result = [0.0] * len(asked)
        for part in cut_by_length({i: len(row.ids) for i, row in enumerate(rows)}, self.tokens):
            some = [rows[i] for i in part]
            batch = pad([row.ids for row in some], torch.long).to(self.model.device)
            hidden = self.model.base_model(batch, use_cache=False).last_hidden_state  # causal: padding comes after what is read
            ends = [(i, end) for i, row in enumerate(some) for end in row.ends]
            read = hidden[[i for i, _ in ends], [end for _, end in ends]]
            wrong, right = self.model.score(read).float().T / self.text.temperature
            numbers = [number for row in some for number in row.asked]
            for number, value in zip(numbers, (right - wrong).tolist(), strict=True):
                result[number] = value
            progress(len(numbers))
        return result
