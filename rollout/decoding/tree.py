"""A draft of what a row will say next. Drafters make it, the target model reads it, `verify` walks it."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tree:
    """N nodes, a token each; node 0, the root, is the last token of the row, which the target has not read yet. A chain is a
    tree, and a tree of the root alone drafts nothing.

    `tokens` and `parents` have length N; a parent stands before its children, the root's is −1, and the children of a node are
    different tokens. `q` has, for a node whose children were drawn at random, the distribution (V,) that they were drawn from:
    one after the other in their order, without replacement. Their number must not depend on what was drawn (dropping a child
    because it came out unlikely would shift what is sampled). A node that is not in `q` may have got its children in any way.

    `chances` are empty or have, for every node, how probable the drafter thinks it that the path from the root to it is said.

    Raises ValueError for anything else.
    """

    tokens: Sequence[int]
    parents: Sequence[int]
    q: Mapping[int, Tensor] = field(default_factory=dict)
    chances: Sequence[float] = ()
    depths: list[int] = field(init=False)  # of every node; the root's is 0
    depth: int = field(init=False)  # of the deepest
    children: list[dict[int, int]] = field(init=False)  # of every node, by their token and in their order

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents) or not self.tokens or self.parents[0] != -1:
            raise ValueError(f"{len(self.tokens)} tokens and {len(self.parents)} parents, {list(self.parents)}, are no tree")
        depths: list[int] = [0]
        children: list[dict[int, int]] = [{} for _ in self.tokens]
        for node, (token, parent) in enumerate(zip(self.tokens[1:], self.parents[1:], strict=True), 1):
            if not 0 <= parent < node:
                raise ValueError(f"node {node} of a tree has the parent {parent}, which does not stand before it")
            if token in children[parent]:
                raise ValueError(f"node {parent} of a tree has two children with token {token}")
            children[parent][token] = node
            depths.append(depths[parent] + 1)
        if missing := [node for node in self.q if not 0 <= node < len(self.tokens)]:
            raise ValueError(f"a tree of {len(self.tokens)} nodes has distributions for the nodes {missing}")
        if self.chances and len(self.chances) != len(self.tokens):
            raise ValueError(f"a tree of {len(self.tokens)} nodes has the chances of {len(self.chances)}")
        object.__setattr__(self, "depths", depths)
        object.__setattr__(self, "depth", max(depths))
        object.__setattr__(self, "children", children)

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> Tree:
        """One draft, the root first."""
        return cls(tokens, range(-1, len(tokens) - 1))

    @classmethod
    def product(cls, root: int, guesses: Sequence[Sequence[tuple[int, float]]], nodes: int) -> Tree:
        """Of so many nodes beside the root, the most probable paths of independent guesses: for each depth, from 1 on, tokens
        with their probabilities; those of probability 0 are no guesses."""
        tokens, parents = [root], [-1]
        heap: list[tuple[float, int, int, int]] = []  # (−probability of the path, depth, parent, token)

        def grow(node: int, depth: int, chance: float) -> None:
            if depth < len(guesses):
                for token, p in guesses[depth]:
                    if p > 0:
                        heapq.heappush(heap, (-chance * p, depth + 1, node, token))

        grow(0, 0, 1.0)
        while heap and len(tokens) <= nodes:
            chance, depth, parent, token = heapq.heappop(heap)
            tokens.append(token)
            parents.append(parent)
            grow(len(tokens) - 1, depth, -chance)
        return cls(tokens, parents)

    def path(self, longest: int) -> list[int]:
        """The path of which most is expected to be said, as so many tokens at most, without the root: that with the highest sum
        of chances, which are all the same where the drafter tells none."""
        expected = [0.0] * len(self.tokens)
        for node in range(1, len(self.tokens)):
            expected[node] = expected[self.parents[node]] + (self.chances[node] if self.chances else 1.0)
        near = [node for node, depth in enumerate(self.depths) if depth <= longest]
        node, tokens = max(near, key=expected.__getitem__), []
        while node:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tokens[::-1]


@functools.cache
def root(token: int) -> Tree:
    """It drafts nothing."""
    return Tree.chain([token])
