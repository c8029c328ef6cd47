"""Everything that is causal: what the others are measured against, with the dense kernel."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor
from transformers import PretrainedConfig

from rollout.prefill.blocks import causal, count
from rollout.prefill.pattern import Choose


class Dense:
    def __init__(self, *, block: PositiveInt = 128) -> None:
        self.block = block

    def begin(self, config: PretrainedConfig) -> Choose:
        return self._choose

    def _choose(self, layer: int, query: Tensor, key: Tensor) -> Tensor:
        heads, tokens, _ = query.shape
        return causal(count(tokens, self.block), query.device).expand(heads, -1, -1)
