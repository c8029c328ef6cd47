"""Blocks by averaged queries and keys where these can be trusted, lines elsewhere (FlexPrefill, arXiv 2502.20766).

a = softmax( q̄ K̄ᵀ / √d ), q̄ the mean query of the last block, K̄ the mean keys of blocks; v: see `vertical_slash`
√JS(a, v) < query_aware:  the fewest blocks of softmax( Q̄ K̄ᵀ / √d ), of all rows together, that hold γ of it,
                          and the lines of the least budget
otherwise:                the lines that γ asks for
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor
from transformers import PretrainedConfig

from rollout.prefill.estimate import Last, averaged, averaged_last, covering, distance, last_block
from rollout.prefill.pattern import Choose
from rollout.prefill.patterns.vertical_slash import Share, VerticalSlash

Distance = Annotated[float, Field(ge=0)]  # √JS: at most √ln 2


class FlexPrefill(VerticalSlash):
    def __init__(
        self,
        *,
        block: PositiveInt = 128,
        min_budget: PositiveInt = 1024,
        max_budget: PositiveInt | None = None,
        gamma: Share = 0.9,
        query_aware: Distance = 0.1,
    ) -> None:
        super().__init__(block=block, min_budget=min_budget, max_budget=max_budget, gamma=gamma)
        self.query_aware = query_aware

    def begin(self, config: PretrainedConfig) -> Choose:
        return self._choose

    def _choose(self, layer: int, query: Tensor, key: Tensor) -> Tensor:
        return self.flexible(query, key, last_block(query, key, self.block))[0]

    def flexible(self, query: Tensor, key: Tensor, last: Last) -> tuple[Tensor, Tensor]:
        """(heads, blocks, blocks) of what is read; and (heads,), of which heads averages can be trusted."""
        aware = distance(averaged_last(query, key, self.block), last.vertical_blocks) < self.query_aware
        found = averaged(query, key, self.block)
        blocks = covering(found.flatten(1), self.gamma * found.shape[1]).view(found.shape)
        return (blocks | self.fewest(last)).where(aware[:, None, None], self.lines(last)), aware
