"""What a policy can learn from its own trees (`job: annotate`, `rlcore.data.trees`): the ways to nodes from which nearly all
solutions come out right, as solutions for `job: sft`."""

from __future__ import annotations

from rlcore.data.trees import read_trees
from rlcore.recipe.schema import Share
from rlcore.types import Problem


def trees(*, path: str, at_least: Share = 0.95, limit: int | None = None) -> list[Problem]:
    """All nodes with a score of `at_least`, those in the middle of a solution too (`meta["unfinished"]`), each text of a tree
    once. `limit` is of trees."""
    problems = []
    for tree in read_trees(path, limit):
        told: dict[str, bool] = {}
        for i, node in enumerate(tree.nodes):
            if node.steps and node.visits and node.score >= at_least:
                text = tree.separator.join(tree.steps_to(i))
                told.setdefault(text if node.ends else text + tree.separator, not node.ends)
        problems += [
            Problem(f"{tree.id}#{number}", tree.problem, tree.answer, meta={"solution": text, "unfinished": unfinished})
            for number, (text, unfinished) in enumerate(told.items())
        ]
    return problems
