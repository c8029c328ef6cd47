"""Vertical lines and diagonals: the keys that everybody reads, and those that are so far back (MInference, arXiv 2407.02490).

    P = softmax( Q_last Kᵀ / √d )      v = mean of P over the queries of the last block      s = mean of P along each diagonal
    n_v = #{ largest v that add up to γ at most } // B + 1, and n_s of s likewise, within [min_budget, max_budget] / B

The n_v blocks of keys that weigh most in v, the first always, and the n_s diagonals of blocks that do in s, each block's own
always. MInference fixes how many lines a head has by a search beforehand; that γ decides it for each prompt is FlexPrefill's.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from transformers import PretrainedConfig

from rlcore.errors import UserError
from rollout.prefill import estimate
from rollout.prefill.estimate import Last, last_block, needed
from rollout.prefill.pattern import Choose

Share = Annotated[float, Field(gt=0, lt=1)]


class VerticalSlash:
    """`min_budget` and `max_budget` are tokens: of keys, and of diagonals. Raises UserError where none lies between them."""

    def __init__(
        self,
        *,
        block: PositiveInt = 128,
        min_budget: PositiveInt = 1024,
        max_budget: PositiveInt | None = None,
        gamma: Share = 0.9,
    ) -> None:
        if max_budget is not None and max_budget < min_budget:
            raise UserError(f"max_budget {max_budget} is below min_budget {min_budget}")
        self.block, self.gamma = block, gamma
        self.least = -(-min_budget // block)
        self.most = None if max_budget is None else max(max_budget // block, self.least)

    def begin(self, config: PretrainedConfig) -> Choose:
        return self._choose

    def _choose(self, layer: int, query: Tensor, key: Tensor) -> Tensor:
        return self.lines(last_block(query, key, self.block))

    def lines(self, last: Last) -> Tensor:
        """(heads, blocks, blocks): as many as γ asks for."""
        columns, diagonals = (
            needed(each, self.gamma, self.block).clamp(self.least, self.most) for each in (last.vertical, last.slash)
        )
        return estimate.vertical_slash(last, columns, diagonals)

    def fewest(self, last: Last) -> Tensor:
        """(heads, blocks, blocks): as many as `min_budget` asks for."""
        least = torch.full((len(last.vertical),), self.least, device=last.vertical.device)
        return estimate.vertical_slash(last, least, least)
