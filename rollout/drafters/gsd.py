"""Graph-structured speculation (Gong et al. 2024, arXiv 2407.16207): hypotheses of a draft model share much of what they say,
so they are kept as a graph in which a piece that comes again is drafted once.

Level by level, every node u of the frontier is given the draft model's `children` most likely tokens x,

    but not where     p(x | u) < sibling · maxₓ p(x | u)                                       (pruned beside its siblings)
    as an edge u → v  where v, not above u, has the token x, after the same `same` tokens          (merged)
    as a leaf         where the probability of its path is below `probable`                        (pruned, kept itself)
    as a node of the next frontier otherwise.

The graph is then unfolded from the root into a tree of `nodes` at most, the most probable paths first; what is below a merged
node is copied, so that the target reads it at its own places. The drafts are no random draws (they are verified by matching),
hence pruning them is exact. The paper's leaf test is on p(x | u) alone, and its unfolding breadth first; its published code
expands leaves as long as anything else is.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from rollout.decoding.companion import Companion, Shoot
from rollout.decoding.drafter import Row
from rollout.decoding.tree import Tree

Share = Annotated[float, Field(ge=0, le=1)]


class Graph(Shoot):
    """With edges beside: to children, and to nodes that stand for what would be one; each with the probability of its token."""

    def __init__(self, root: int) -> None:
        super().__init__(root)
        self.edges: list[dict[int, float]] = [{}]

    def add(self, token: int, parent: int, p: float) -> int:
        self.edges.append({})
        return super().add(token, parent, p)

    def repeated(self, token: int, parent: int, same: int) -> int | None:
        """A node with the token that is not above, nor at, `parent`, and comes after the same tokens, so many as `same`."""
        above = self._line(parent)
        before = [self.tokens[node] for node in above[:same]]
        for node in range(len(self.tokens) - 1, 0, -1):
            if self.tokens[node] == token and node not in above:
                line = self._line(self.parents[node])[:same]
                if [self.tokens[each] for each in line] == before:
                    return node
        return None

    def unfolded(self, nodes: int, depth: int) -> Tree:
        """As a tree of so many nodes at most, beside the root, and so deep."""
        tokens, parents, chances = [self.tokens[0]], [-1], [1.0]
        heap = [(-p, node, 0, 1) for node, p in self.edges[0].items()]  # (−chance of the path, node, parent in the tree, depth)
        heapq.heapify(heap)
        while heap and len(tokens) <= nodes:
            chance, node, parent, deep = heapq.heappop(heap)
            if deep > depth:
                continue
            tokens.append(self.tokens[node])
            parents.append(parent)
            chances.append(-chance)
            for child, p in self.edges[node].items():
                heapq.heappush(heap, (chance * p, child, len(tokens) - 1, deep + 1))
        return Tree(tokens, parents, chances=chances)

    def _line(self, node: int) -> list[int]:
        """A node and those above it."""
        line = []
        while node >= 0:
            line.append(node)
            node = self.parents[node]
        return line


class Gsd(Companion[Graph]):
    """Drafts graphs that are `depth` deep, by the model of that name. What is merged goes on from there, so that a tree may be
    deeper."""

    def __init__(
        self,
        *,
        model: str,
        depth: PositiveInt = 6,
        children: PositiveInt = 4,
        sibling: Share = 0.2,
        probable: Share = 0.05,
        same: NonNegativeInt = 1,
        nodes: PositiveInt = 48,
    ) -> None:
        super().__init__(model, depth)
        self.children, self.sibling, self.probable = children, sibling, probable
        self.same, self.nodes = same, nodes

    def plant(self, row: Row) -> Graph:
        return Graph(row.ids[-1])

    def candidates(self, q: Tensor, of: Sequence[Row], level: int) -> tuple[Tensor, Tensor]:
        chances, tokens = q.topk(min(self.children, q.shape[1]))
        return tokens, chances

    def branch(self, shoot: Graph, candidates: Sequence[Sequence[tuple[int, float]]], q: Tensor) -> None:
        frontier, shoot.frontier = shoot.frontier, []
        for parent, found in zip(frontier, candidates, strict=True):
            for token, p in found:
                if p == 0 or p < self.sibling * found[0][1]:
                    break  # the rest is less likely still
                node = shoot.repeated(token, parent, self.same)
                if node is None:
                    node = shoot.add(token, parent, p)
                    if shoot.chances[node] >= self.probable:
                        shoot.frontier.append(node)
                shoot.edges[parent][node] = p

    def grown(self, shoot: Graph, room: int) -> Tree:
        return shoot.unfolded(self.nodes, room)
