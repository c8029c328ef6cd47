"""What reward models learn from a tree (`rlcore.data.trees`): the label of a step is its node's score.

    ORM    whole solutions, as the model ended them             the score of their last node, right or wrong
    PRM    a step, after those above it                         its node's score
    HRM    those, and each merged with the step above it        the score of the last; of HNC's trees too (`hnc`)

A tree has thousands of nodes, most of them at the bottom and alike. So at each height as many nodes of each score are drawn as
the rarest score has, but a tenth of them at least; where all have one score, 5 nodes at most. (These are the rules of the code
released with arXiv 2503.13551.) Solutions are drawn likewise, those of a tree together.

Siblings that say the same are nodes of their own, also here: one step may come with several labels.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from rlcore.data.hnc import hnc
from rlcore.data.step_examples import Example, Kind
from rlcore.data.trees import AnnotatedTree, Tree
from rlcore.errors import UserError
from rlcore.types import seed_from

MOST_ALIKE = 5  # nodes that are drawn where all have one score
LEAST_SHARE = 10  # of a score's nodes one in so many is drawn at least


def tree_examples(kind: Kind, annotated: AnnotatedTree) -> list[Example]:
    """Each text once with each of its labels. Raises UserError for HNC's trees where no merged steps are judged."""
    if annotated.hnc and kind != "hrm":
        raise UserError(f"hnc merges steps, which {'an orm' if kind == 'orm' else 'a prm'} does not judge: set kind to hrm")
    tree, seed = annotated.tree, annotated.seed
    found: dict[tuple[tuple[str, ...], tuple[str, ...], float], Example] = {}
    for number, each in enumerate([tree, *(hnc(tree, seed + k) for k in range(annotated.hnc))]):
        rng = random.Random(seed_from("selection", seed, tree.id, number))
        for example in _solutions(each, rng) if kind == "orm" else _steps(each, rng, merged=kind == "hrm"):
            found.setdefault((example.previous, example.current, example.label), example)
    return list(found.values())


def _steps(tree: Tree, rng: random.Random, merged: bool) -> Iterator[Example]:
    for i in selected(tree, rng):
        node = tree.nodes[i]
        assert node.parent is not None  # the root is never selected
        above, previous = tree.nodes[node.parent], tree.steps_to(node.parent)
        yield Example(tree.problem, previous, node.steps, node.score, "step")
        if merged and above.steps:
            before = previous[: len(previous) - len(above.steps)]
            yield Example(tree.problem, before, above.steps + node.steps, node.score, "merged")


def _solutions(tree: Tree, rng: random.Random) -> Iterator[Example]:
    ends = (i for i, node in enumerate(tree.nodes) if node.ends and node.visits and tree.steps_to(i))
    for i in balanced(tree, ends, rng):
        yield Example(tree.problem, (), tree.steps_to(i), tree.nodes[i].score, "solution")


def selected(tree: Tree, rng: random.Random) -> list[int]:
    """Nodes that say something and were visited, balanced height by height."""
    heights: dict[int, list[int]] = {}
    for i, height in enumerate(tree.heights):
        if tree.nodes[i].steps and tree.nodes[i].visits:
            heights.setdefault(height, []).append(i)
    return [i for height in sorted(heights) for i in balanced(tree, heights[height], rng)]


def balanced(tree: Tree, nodes: Iterable[int], rng: random.Random) -> list[int]:
    """Some of the nodes, score by score."""
    by_score: dict[float, list[int]] = {}
    for i in nodes:
        by_score.setdefault(tree.nodes[i].score, []).append(i)
    if len(by_score) == 1:
        [alike] = by_score.values()
        return rng.sample(alike, min(MOST_ALIKE, len(alike)))
    rarest = min(map(len, by_score.values()), default=0)
    return [i for group in by_score.values() for i in rng.sample(group, max(rarest, len(group) // LEAST_SHARE))]
