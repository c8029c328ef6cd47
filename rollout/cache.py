"""A preallocated key–value cache of slots, one row of the batch each. For the transformers engine and `rollout.decoding`.

The rows in use are always slots 0…n−1: new rows are prefilled behind them, and when a row leaves, the last one moves into its
slot (one row copied, whatever the batch). Each row writes at its own length, so rows of any age share a forward pass. How long
a row is, its owner knows: to truncate one is to count fewer of its columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from rlcore.errors import UserError
from rlcore.packing import Packed


@dataclass
class Prefill:
    """New rows, of which several may have one prompt: what stands at `column[i]` of the forward pass's row `row[i]` goes to
    `target[i]` of slot `slot[i]`. All are (tokens,) long."""

    row: Tensor
    column: Tensor
    slot: Tensor
    target: Tensor

    @classmethod
    def of(cls, packed: Packed, source: Tensor, start: int) -> Prefill:
        """Each slot from `start` on gets the sequence of `source`, from its first column on."""
        length = packed.length[source]
        slot = torch.arange(len(source), device=source.device).repeat_interleave(length)
        target = torch.arange(len(slot), device=source.device) - (length.cumsum(0) - length)[slot]
        which = source[slot]
        return cls(packed.row[which], packed.start[which] + target, start + slot, target)


@dataclass
class Decode:
    """So many more tokens for rows 0…n−1, written from each row's length on; attention reads columns 0…width−1."""

    lengths: Tensor  # (n,) long
    width: int


class SlotLayer(CacheLayerMixin):
    is_sliding = False

    def __init__(self, slots: int, heads: int, capacity: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.keys = torch.zeros(slots, heads, capacity, width, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.is_initialized = True
        self.phase: Prefill | Decode | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the storage is made at construction."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Store (rows, heads, tokens, width) and return what attention reads."""
        if isinstance(self.phase, Prefill):
            phase = self.phase
            self.keys[phase.slot, :, phase.target] = key_states[phase.row, :, phase.column]
            self.values[phase.slot, :, phase.target] = value_states[phase.row, :, phase.column]
            return key_states, value_states
        assert isinstance(self.phase, Decode)
        count, width = len(self.phase.lengths), self.phase.width
        index = torch.arange(count, device=key_states.device)[:, None]
        columns = self.phase.lengths[:, None] + torch.arange(key_states.shape[2], device=key_states.device)
        self.keys[index, :, columns] = key_states.transpose(1, 2)
        self.values[index, :, columns] = value_states.transpose(1, 2)
        return self.keys[:count, :, :width], self.values[:count, :, :width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]


class SlotCache(Cache):
    def __init__(self, config: PretrainedConfig, slots: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        if slides or "sliding_attention" in (getattr(config, "layer_types", None) or []):
            raise UserError("the transformers engine's cache has no sliding-window attention: use another model or engine")
        super().__init__(
            layers=[SlotLayer(slots, heads, capacity, width, dtype, device) for _ in range(config.num_hidden_layers)]
        )
        self.slots, self.capacity = slots, capacity

    @property
    def bytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def enter(self, phase: Prefill | Decode) -> None:
        """Say what the next forward pass is."""
        for layer in self.layers:
            layer.phase = phase

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` columns of a slot over another."""
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    def gather(self, rows: Tensor, sources: Tensor, targets: Tensor) -> None:
        """Copy within each of `rows` column `sources` to column `targets`; all three (M,) long. All are read before any is
        written."""
        for layer in self.layers:
            layer.keys[rows, :, targets] = layer.keys[rows, :, sources]
            layer.values[rows, :, targets] = layer.values[rows, :, sources]

    def take(self, old: SlotCache, rows: int) -> None:
        """Carry over the first `rows` slots of a smaller cache."""
        for mine, theirs in zip(self.layers, old.layers, strict=True):
            mine.keys[:rows, :, : old.capacity] = theirs.keys[:rows]
            mine.values[:rows, :, : old.capacity] = theirs.values[:rows]
