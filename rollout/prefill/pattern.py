"""What a pattern is: for one sequence, it chooses layer by layer what each head reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor
from transformers import PretrainedConfig

Choose = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, query (heads, N, width), key (heads, N, width)) → (heads, blocks, blocks) bool: which block of keys each block of
queries reads. Queries are scaled, keys repeated for the heads of a group. Every block reads its own, and none a later one."""


class Pattern(Protocol):
    block: int  # tokens

    def begin(self, config: PretrainedConfig) -> Choose:
        """For one sequence: what it remembers from layer to layer is gone with it. Raises UserError where the pattern is not
        made for such a model."""
        ...
