"""Monte-Carlo tree search (UCT: Kocsis and Szepesvári 2006): the tree grows where it is promising or little known. A round

    selects     from the root on, the child of highest Q + c·√(ln N / n) (n and N: visits of the child and of its parent, Q its
                share of right solutions), until one that has no children yet
    expands     it by `children` next steps
    simulates   `rollouts` solutions from each of these to its end, which are graded
    backs up    visits and right ones to all nodes above

A step with which a solution ends counts as so many rollouts, which would all say the same: else a node's mean would lean to the
other steps. A node below which nothing is left to expand is passed by; `depth` bounds the expansions, not the solutions. The
trees of several problems take a round together. Defaults as in GroundedPRM (arXiv 2510.14942), whose verifiers, discount and
blend of values are not here; HNC takes steps from nodes of 4 children and more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

from rlcore.data.trees import Tree
from rlcore.types import Problem
from rollout.growing import Cost, Grower, Growing, Place, Search, Solution


class Uct(Search):
    def __init__(
        self,
        *,
        children: Annotated[int, Field(ge=2)] = 3,
        depth: PositiveInt = 5,
        rounds: PositiveInt = 12,
        rollouts: PositiveInt = 1,
        c: NonNegativeFloat = 1.414,
    ) -> None:
        self.children, self.depth, self.rounds, self.rollouts, self.c = children, depth, rounds, rollouts, c

    def cost(self, max_new_tokens: int) -> Cost:
        nodes = self.rounds * self.children
        return Cost(nodes, nodes * (1 + self.rollouts), nodes * self.rollouts * max_new_tokens)

    def grow(self, grower: Grower, problems: Sequence[Problem]) -> list[Tree]:
        trees = [grower.plant(problem) for problem in problems]
        for _ in range(self.rounds):
            places = [Place(tree, node) for tree in trees if (node := self.select(tree)) is not None]
            if not places:
                break
            grown = grower.expand(places, self.children)
            over = [place for place in grown if not place.sprout.goes_on]
            ended = [Solution(p, p.tree.said(p.node), not p.sprout.ends, self.rollouts) for p in over]
            grower.judge(ended + grower.finish([place for place in grown if place.sprout.goes_on], self.rollouts))
        return [tree.finished() for tree in trees]

    def select(self, tree: Growing) -> int | None:
        """The node to expand; None where the tree is whole."""
        expandable = self._expandable(tree)
        if not expandable[0]:
            return None
        at = 0
        while tree.nodes[at].children:
            left = [child for child in tree.nodes[at].children if expandable[child]]
            at = max(left, key=lambda child: self._bound(tree, child))
        return at

    def _expandable(self, tree: Growing) -> list[bool]:
        """Of each node, whether something is left to expand at it or below it."""
        found = [node.goes_on and not node.children and node.height < self.depth for node in tree.nodes]
        for i in range(len(tree.nodes) - 1, 0, -1):
            parent = tree.nodes[i].parent
            assert parent is not None
            found[parent] = found[parent] or found[i]
        return found

    def _bound(self, tree: Growing, i: int) -> float:
        node = tree.nodes[i]
        if not node.visits or node.parent is None:
            return math.inf
        return node.correct / node.visits + self.c * math.sqrt(math.log(tree.nodes[node.parent].visits) / node.visits)
