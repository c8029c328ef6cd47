"""Hierarchical Node Compression (Wang et al. 2025, arXiv 2503.13551): more to learn from a tree, at no cost.

Nodes are gone through from the root. With probability ½ a child C of P, of at least 4 children, is taken from P, its step is
merged with P's, and it becomes a child of P's parent G:

    G ─ P ─ C      →      G ─ P
                            └ P⊕C

Not where P is the root or was itself moved, and of each P one child at most. What is below C stays below it, one height lower.
Then all scores are those of the tree as it is now: P has lost the solutions that went through C, and its score with them, which
is the noise that HNC adds under control; all other nodes keep theirs.

The rules are those of the released code, which forgets the heights below C.
"""

from __future__ import annotations

import random
from dataclasses import replace

from rlcore.data.trees import Tree
from rlcore.types import seed_from

PROBABILITY = 0.5
LEAST_CHILDREN = 4


def hnc(tree: Tree, seed: int) -> Tree:
    """The changed tree, with its nodes where they were: those that moved have another parent."""
    rng = random.Random(seed_from("hnc", seed, tree.id))
    nodes, moved = list(tree.nodes), set()
    for p, children in enumerate(tree.children):
        above = nodes[p].parent
        if above is None or p in moved or len(children) < LEAST_CHILDREN:
            continue
        c = next((child for child in children if rng.random() < PROBABILITY), None)
        if c is not None:
            parent, child = nodes[p], nodes[c]
            nodes[c] = replace(child, steps=parent.steps + child.steps, parent=above)
            nodes[p] = replace(parent, visits=parent.visits - child.visits, correct=parent.correct - child.correct)
            moved.add(c)
    return replace(tree, nodes=tuple(nodes))
