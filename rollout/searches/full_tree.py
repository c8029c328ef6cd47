"""The full tree (the "MCTS" of the code released with Wang et al. 2025, arXiv 2503.13551): from every node the same number of
next steps, level by level, down to `depth`. The leaves are graded, and a node's score is the share of right ones below it:

    visits = leaves below        correct = right leaves below

A leaf at the last level that has not ended is not finished: as released, it is wrong unless it states the answer already.
A tree has up to Σ children^h nodes, h = 1 … depth: 3,905 with the released 5 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt

from rlcore.data.trees import Tree
from rlcore.types import Problem
from rollout.growing import Cost, Grower, Place, Search, Solution


class FullTree(Search):
    def __init__(self, *, children: Annotated[int, Field(ge=2)] = 5, depth: PositiveInt = 5) -> None:
        self.children, self.depth = children, depth

    def cost(self, max_new_tokens: int) -> Cost:
        nodes = sum(self.children**height for height in range(1, self.depth + 1))
        return Cost(nodes, nodes, self.children**self.depth * max_new_tokens)

    def grow(self, grower: Grower, problems: Sequence[Problem]) -> list[Tree]:
        trees = [grower.plant(problem) for problem in problems]
        tips, leaves = [Place(tree, 0) for tree in trees], []
        for _ in range(self.depth):
            grown = grower.expand(tips, self.children)
            tips = [place for place in grown if place.sprout.goes_on]
            leaves += [place for place in grown if not place.sprout.goes_on]
        grower.judge([Solution(p, p.tree.said(p.node), cut=not p.sprout.ends) for p in leaves + tips])
        return [tree.finished() for tree in trees]
