"""One head of each cluster reads everything, and those that are like it what mattered to it (SharePrefill, arXiv 2505.19578).

Heads are sorted into clusters beforehand (`rlcore decode cluster`). For a sequence, layer by layer:

    averages can be trusted:              as FlexPrefill has it
    else, the first of its cluster:       dense; it becomes the pivot. Ā are its averages over blocks, and its pattern is
                                          the fewest blocks of each row of Ā that hold γ of it
    else, √JS(v, v_pivot) < similarity and √JS(s, s_pivot) < similarity and  Σ Ā[VS_pivot] / Σ Ā < fallback:
                                          the pivot's pattern, and the lines of the least budget
    else, and in clusters of too few:     the lines that γ asks for

v, s and the lines VS are those of `vertical_slash`, v and s over blocks. Where the pivot's own lines hold `fallback` of its
attention, sharing would gain nothing over them. This is the algorithm as its authors' code has it, whose defaults ours are; the
paper's text describes one test of similarity, and one of sparsity.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveInt
from torch import Tensor
from transformers import PretrainedConfig

from rollout.prefill.blocks import causal
from rollout.prefill.clusters import Clusters
from rollout.prefill.estimate import Last, block_averages, covering, distance, last_block
from rollout.prefill.pattern import Choose
from rollout.prefill.patterns.flex_prefill import Distance, FlexPrefill
from rollout.prefill.patterns.vertical_slash import Share


@dataclass(frozen=True)
class Pivot:
    """What a cluster learned of its first head."""

    vertical: Tensor  # (blocks,)
    slash: Tensor  # (blocks,)
    pattern: Tensor  # (blocks, blocks) bool
    held_by_lines: float  # share of its attention


class SharePrefill(FlexPrefill):
    """`clusters` is what `rlcore decode cluster` wrote: its run folder, or the file. Raises UserError where there is none."""

    def __init__(
        self,
        *,
        clusters: str,
        block: PositiveInt = 128,
        min_budget: PositiveInt = 1024,
        max_budget: PositiveInt | None = None,
        gamma: Share = 0.9,
        query_aware: Distance = 0.1,
        similarity: Distance = 0.5,
        fallback: Share = 0.9,
    ) -> None:
        super().__init__(block=block, min_budget=min_budget, max_budget=max_budget, gamma=gamma, query_aware=query_aware)
        self.clusters = Clusters.read(clusters)
        self.similarity, self.fallback = similarity, fallback

    def begin(self, config: PretrainedConfig) -> Choose:
        self.clusters.refuse_other(config)
        return Sharing(self).choose


class Sharing:
    """The pivots of one sequence."""

    def __init__(self, asked: SharePrefill) -> None:
        self.asked, self.cluster = asked, asked.clusters.shared()
        self.pivots: dict[str, Pivot] = {}

    def choose(self, layer: int, query: Tensor, key: Tensor) -> Tensor:
        last = last_block(query, key, self.asked.block)
        visible, aware = self.asked.flexible(query, key, last)
        lines, fewest = self.asked.lines(last), self.asked.fewest(last)
        for head in (~aware).nonzero()[:, 0].tolist():
            cluster = self.cluster.get((layer, head))
            if cluster is None:
                continue
            pivot = self.pivots.get(cluster)
            if pivot is None:
                averages = block_averages(query[head, None], key[head, None], self.asked.block)[0]
                self.pivots[cluster] = self._pivot(averages, last, head, lines[head])
                visible[head] = causal(len(averages), averages.device)
            elif self._alike(pivot, last, head):
                visible[head] = pivot.pattern | fewest[head]
        return visible

    def _pivot(self, averages: Tensor, last: Last, head: int, lines: Tensor) -> Pivot:
        return Pivot(
            last.vertical_blocks[head],
            last.slash_blocks[head],
            covering(averages, self.asked.gamma) & causal(len(averages), averages.device),
            float(averages[lines].sum() / averages.sum()),
        )

    def _alike(self, pivot: Pivot, last: Last, head: int) -> bool:
        found = ((pivot.vertical, last.vertical_blocks[head]), (pivot.slash, last.slash_blocks[head]))
        return pivot.held_by_lines < self.asked.fallback and all(
            bool(distance(theirs, own) < self.asked.similarity) for theirs, own in found
        )
