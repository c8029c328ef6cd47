"""A model that is asked for log-probs: alone, the reference that a KL term measures to; the learner is one that trains.

A batch is dealt to the ranks that work together (`torch.distributed`; one where there is none), and each rank's share cut into
micro-batches of sorted lengths under a token budget. Neither changes anything but memory and time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from rlcore.batch import GradedBatch, cut_by_length
from rlcore.recipe.schema import Update
from trainers.logprobs import TokenLogprobs


class Scorer:
    """`cut` bounds the memory of a pass, `dtype` is that of the forward passes; the parameters stay as they are. `module`
    computes: the model's `TokenLogprobs`, or what wraps it."""

    together = 1  # how many completions, one after the other in a batch, are never computed apart: 2 where they are pairs

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        cut: Update,
        dtype: str,
        module: Callable[..., tuple[Tensor, ...]] | None = None,
    ) -> None:
        self.model, self.cut, self.dtype = model, cut, getattr(torch, dtype)
        self.module = module or TokenLogprobs(model)

    def logprobs(self, batch: GradedBatch) -> Tensor:
        """(B, T) log-probs of the batch's tokens at its sampling temperature, without dropout: what an engine serves. Every
        rank has those of all."""
        return self.outputs(batch, range(len(batch.tokens)))[0]

    @torch.no_grad()
    def outputs(self, batch: GradedBatch, index: Sequence[int]) -> tuple[Tensor, ...]:
        """The outputs of the module for the completions `index`, (B, T) each, 0 for the others."""
        training = self.model.training
        self.model.eval()
        cut = self.passes(batch, index)
        found = [torch.stack(self.forward(batch, each)) for each in cut]
        self.model.train(training)
        result = torch.zeros(len(found[0]), *batch.tokens.shape, device=self.device)
        for each, part in zip(cut, found, strict=True):
            if each.counts:
                result[:, each.rows, : part.shape[2]] = part
        if world() > 1:
            dist.all_reduce(result)
        return tuple(result.cpu())

    def passes(self, batch: GradedBatch, index: Sequence[int]) -> list[Pass]:
        return passes(batch, index, self.cut, self.together)

    def forward(self, batch: GradedBatch, each: Pass) -> tuple[Tensor, ...]:
        """(b, t) log-probs and entropies of a pass's completions, or what the module gives in their place; t is the longest of
        them."""
        return self.module(*self.arguments(batch, each))

    def arguments(self, batch: GradedBatch, each: Pass) -> tuple[Any, ...]:
        """Of the module."""
        lengths = [int(n) for n in batch.present[each.rows].sum(1)]
        prompts = [batch.prompt_ids[i] for i in each.rows]
        tokens = batch.tokens[each.rows][:, : max(lengths)]
        return self.dtype, prompts, tokens, lengths, batch.sampling.temperature or 1.0, each.chunks

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


class WithoutAdapters(Scorer):
    """The model that a LoRA policy started from: the policy itself with its adapters switched off, and no second model."""

    def logprobs(self, batch: GradedBatch) -> Tensor:
        with self.model.disable_adapter():
            return super().logprobs(batch)


def world() -> int:
    """How many ranks work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


@dataclass(frozen=True)
class Pass:
    """One forward pass, and the backward pass that may follow."""

    rows: list[int]  # a micro-batch
    counts: bool  # False: for the collectives alone
    chunks: int  # in how many parts the logits are made


def passes(batch: GradedBatch, index: Sequence[int], cut: Update, together: int = 1) -> list[Pass]:
    """This rank's passes over the completions `index`, of which each `together` stay in one. All ranks do as many, in as many
    parts, for the collectives in them (ZeRO-3): one that has fewer micro-batches does the shortest again, for nothing."""
    length, completions = _lengths(batch, index), batch.lengths.tolist()
    units = [list(index[k : k + together]) for k in range(0, len(index), together)]
    units.sort(key=lambda unit: (max(length[i] for i in unit), unit))
    dealt = [[i for unit in units[r :: world()] for i in unit] for r in range(world())]
    cuts = [list(microbatches(batch, rows, cut.tokens_per_microbatch, together)) for rows in dealt]
    result = []
    for beside in itertools.zip_longest(*cuts):
        most = max(sum(int(completions[i]) for i in rows or units[0]) for rows in beside)
        mine = beside[rank()]
        result.append(Pass(mine or units[0], mine is not None, -(-most // cut.logits_chunk)))
    return result


def microbatches(batch: GradedBatch, index: Sequence[int], budget: int, together: int = 1) -> Iterator[list[int]]:
    """Rows in order of length, cut so that no micro-batch is wider × longer than `budget` padded tokens (one row at least, or
    as many as stay `together`)."""
    length = _lengths(batch, index)
    longest = {k: max(length[i] for i in index[k : k + together]) for k in range(0, len(index), together)}
    for part in cut_by_length(longest, budget // together):
        yield [i for k in part for i in index[k : k + together]]


def _lengths(batch: GradedBatch, index: Sequence[int]) -> dict[int, int]:
    """Tokens of each completion with its prompt."""
    completions = batch.lengths.tolist()
    return {i: len(batch.prompt_ids[i]) + int(completions[i]) for i in index}
