"""A reward model that `job: reward_model` trained, with its own way of writing and the temperature that calibrates it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import PositiveInt

from rewards.judge import Judge
from rewards.judged_text import Asked, load_judged_text
from rlcore.batch import cut_by_length, pad
from rlcore.errors import UserError
from rlcore.models import ModelSpec, context, load_tokenizer, locate
from rlcore.protocols import Progress, no_progress


class Trained(Judge):
    """`model`: the job's run folder, or the `model` in it. `tokens`: of a pass, padding included. Every text is judged by
    itself: neither what it is batched with nor padding changes a score."""

    def __init__(self, *, model: str, dtype: str = "float32", device: str = "auto", tokens: PositiveInt = 16384) -> None:
        folder = locate(model)
        self.text = load_judged_text(Path(folder))
        self.tokenizer = load_tokenizer(folder)
        self.model = ModelSpec(folder, dtype, device).load_with_head(2, self.text.head).eval()
        self.context, self.tokens = context(folder), tokens

    @torch.no_grad()
    def log_odds(self, asked: Sequence[Asked], progress: Progress = no_progress) -> list[float]:
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
