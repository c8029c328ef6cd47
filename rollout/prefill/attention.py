"""A model's prefill by a pattern: its attention, as transformers calls it, over the blocks that the pattern chooses.

`prefill` reads one sequence and gives the cache, with which decoding goes on as after any other prefill: dense.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache, PretrainedConfig, PreTrainedModel

from rlcore.errors import UserError
from rollout.prefill import blocks
from rollout.prefill.pattern import Pattern

NAME = "rlcore_sparse_prefill"


class Reading:
    """One sequence on its way through the layers, and what that takes."""

    def __init__(self, pattern: Pattern, config: PretrainedConfig) -> None:
        self.block, self.choose = pattern.block, pattern.begin(config)
        self.computed = self.causal = 0  # blocks, over heads and layers
        self.seconds = 0.0  # of attention, the pattern's choice included

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query (heads, N, width), scaled; key and value (groups, N, width) → (heads, N, width)."""
        began = _now(query.device)
        key, value = (each.repeat_interleave(len(query) // len(each), 0) for each in (key, value))
        visible = self.choose(layer, query, key)
        output = blocks.attend(query, key, value, visible, self.block)
        self.computed += int(visible.sum())
        self.causal += len(query) * int(blocks.causal(visible.shape[1]).sum())
        self.seconds += _now(query.device) - began
        return output


@dataclass(frozen=True)
class Prefilled:
    logits: Tensor  # (positions, V)
    cache: Cache
    share: float  # of the causal blocks, those that were computed
    seconds: float
    attention_s: float  # of them
    processor_s: float  # of this process, all its threads: on a CPU, what others there do changes these least


@torch.inference_mode()
def prefill(model: PreTrainedModel, ids: Tensor, pattern: Pattern, positions: Sequence[int] = (-1,)) -> Prefilled:
    """Read ids (1, N); logits are of what comes after these positions. Raises UserError for more than one sequence, and for a
    model whose layers see a window only."""
    if len(ids) != 1:
        raise UserError(f"a sparse prefill reads one sequence, and was given {len(ids)}: read them one after the other")
    at = torch.tensor(positions, device=ids.device) % ids.shape[1]
    reading = Reading(pattern, model.config)
    began, worked = _now(ids.device), time.process_time()
    with _attending(model):
        output = model(ids, use_cache=True, logits_to_keep=at, reading=reading)
    took = _now(ids.device) - began
    return Prefilled(
        output.logits[0],
        output.past_key_values,
        reading.computed / reading.causal,
        took,
        reading.seconds,
        time.process_time() - worked,
    )


@contextmanager
def _attending(model: PreTrainedModel) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def sparse_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    reading: Reading,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Query (1, heads, N, width), key and value (1, groups, N, width) → (1, N, heads, width)."""
    if sliding_window is not None and sliding_window < key.shape[2]:
        raise UserError(f"layer {module.layer_idx} sees a window of {sliding_window} tokens: it cannot be read by a pattern")
    scaled = query[0] * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    output = reading.attend(module.layer_idx, scaled, key[0], value[0])
    return output.transpose(0, 1)[None].contiguous(), None


def _now(device: torch.device) -> float:
    """Seconds, when the device has done what it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


AttentionInterface.register(NAME, sparse_attention)
