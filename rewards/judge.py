"""A trained reward model at work: how likely steps and solutions are right. Loaded from what `job: reward_model` wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from rewards.judged_text import load_judged_text
from rlcore.batch import pad
from rlcore.errors import UserError
from rlcore.models import ModelSpec, context, load_tokenizer

TOKENS = 16384  # of a pass, padding included


class Asked(NamedTuple):
    """Is `current`, one step or several, right after `previous`?"""

    problem: str
    previous: tuple[str, ...]
    current: tuple[str, ...]


class Judge:
    """Every text is judged by itself: neither what it is batched with nor padding changes a score."""

    def __init__(self, folder: Path, *, dtype: str = "float32", device: str = "auto", tokens: int = TOKENS) -> None:
        self.text = load_judged_text(folder)
        self.tokenizer = load_tokenizer(str(folder))
        self.model = ModelSpec(str(folder), dtype, device).load_with_head(2, "text").eval()
        self.context, self.tokens = context(str(folder)), tokens

    @torch.no_grad()
    def log_odds(self, asked: Sequence[Asked], progress: Callable[[int], None] = lambda done: None) -> list[float]:
        """log P(right)/P(wrong) of each, calibrated. Raises UserError for a text that is longer than the model's context."""
        ids = [self.tokenizer(self.text.write(*each)).input_ids for each in asked]
        if (longest := max(map(len, ids), default=0)) > self.context:
            raise UserError(f"a text of {longest} tokens is longer than the reward model's context of {self.context}")
        result = [0.0] * len(ids)
        for rows in _passes([len(each) for each in ids], self.tokens):
            batch = pad([ids[i] for i in rows], torch.long).to(self.model.device)
            hidden = self.model.base_model(batch, use_cache=False).last_hidden_state  # causal: padding comes after what is read
            last = hidden[torch.arange(len(rows)), [len(ids[i]) - 1 for i in rows]]
            wrong, right = self.model.score(last).float().T / self.text.temperature
            for i, value in zip(rows, (right - wrong).tolist(), strict=True):
                result[i] = value
            progress(len(rows))
        return result


def _passes(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """The texts in order of length, cut so that no pass is wider × longer than so many tokens (one text at least)."""
    cut: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not cut or lengths[i] * (len(cut[-1]) + 1) > tokens:
            cut.append([])
        cut[-1].append(i)
    return cut
