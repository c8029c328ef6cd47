"""A model that is asked for log-probs: alone, the reference that a KL term measures to; the learner is one that trains.

A batch is cut into micro-batches of sorted lengths under a token budget, which changes memory and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from rlcore.batch import GradedBatch
from rlcore.recipe.schema import Update
from trainers.logprobs import token_logprobs


class Scorer:
    """`cut` bounds the memory of a pass, `dtype` is that of the forward passes; the parameters stay as they are."""

    def __init__(self, model: PreTrainedModel | PeftModel, cut: Update, dtype: str) -> None:
        self.model, self.cut, self.dtype = model, cut, getattr(torch, dtype)

    @torch.no_grad()
    def logprobs(self, batch: GradedBatch) -> Tensor:
        """(B, T) log-probs of the batch's tokens at its sampling temperature, without dropout: what an engine serves."""
        result = torch.zeros(batch.tokens.shape)
        training = self.model.training
        self.model.eval()
        for rows in microbatches(batch, range(len(batch.tokens)), self.cut.tokens_per_microbatch):
            values, _ = self.forward(batch, rows)
            result[rows, : values.shape[1]] = values.cpu()
        self.model.train(training)
        return result

    def forward(self, batch: GradedBatch, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(b, t) log-probs and entropies of some completions, t being the longest of them."""
        lengths = [int(n) for n in batch.present[rows].sum(1)]
        prompts = [batch.prompt_ids[i] for i in rows]
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        temperature = batch.sampling.temperature or 1.0
        with self._precision():
            return token_logprobs(
                model, prompts, batch.tokens[rows][:, : max(lengths)], lengths, temperature, self.cut.logits_chunk
            )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _precision(self) -> AbstractContextManager[object]:
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, dtype=self.dtype)


class WithoutAdapters(Scorer):
    """The model that a LoRA policy started from: the policy itself with its adapters switched off, and no second model."""

    def logprobs(self, batch: GradedBatch) -> Tensor:
        with self.model.disable_adapter():
            return super().logprobs(batch)


def microbatches(batch: GradedBatch, index: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows in order of length, cut so that no micro-batch is wider × longer than `budget` padded tokens (one row at least)."""
    completions = batch.lengths.tolist()
    length = {i: len(batch.prompt_ids[i]) + int(completions[i]) for i in index}
    rows: list[int] = []
    for i in sorted(index, key=lambda i: (length[i], i)):
        if rows and length[i] * (len(rows) + 1) > budget:
            yield rows
            rows = []
        rows.append(i)
    if rows:
        yield rows
