"""Trees of solutions, grown step by step from one problem, with what came of each step: what `job: annotate` writes.

A file has a tree a line, as JSON. `nodes` begins with the root, which says nothing, and parents stand before their children:

    {"id": "1", "problem": "3+5=?", "answer": "8", "nodes": [
      {"steps": [], "parent": null, "visits": 2, "correct": 1, "ends": false},
      {"steps": ["#### 8"], "parent": 0, "visits": 1, "correct": 1, "ends": true},
      {"steps": ["#### 2"], "parent": 0, "visits": 1, "correct": 0, "ends": true}]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rlcore.data.files import rows_named
from rlcore.data.rows import Row


@dataclass(frozen=True, slots=True)
class Node:
    """A step, after those of the nodes above it. Of the `visits` solutions that went through it `correct` were right; there are
    no visits where the grader failed.

    `steps` is that step; several where they were merged (`rlcore.data.hnc`), and none at the root and where only blanks were
    said. `parent` is a place among the tree's nodes, None for the root. `ends`: the solution ends here, as the model ended it.
    """

    steps: tuple[str, ...]
    parent: int | None
    visits: int
    correct: int
    ends: bool = False

    @property
    def score(self) -> float:
        """The Monte-Carlo estimate of the chance that a solution that goes on from here is right."""
        return self.correct / self.visits


@dataclass(frozen=True, slots=True)
class Tree:
    """All that was sampled of one problem. Raises ValueError for what is no tree, or where the numbers cannot be."""

    id: str
    problem: str
    answer: str
    nodes: tuple[Node, ...]
    separator: str  # that ended the steps

    def __post_init__(self) -> None:
        if not self.nodes or self.nodes[0].parent is not None or self.nodes[0].steps:
            raise ValueError("the first node must be the root: without a parent, and without steps")
        below = [[0, 0] for _ in self.nodes]
        for i, node in enumerate(self.nodes):
            if i and (node.parent is None or not 0 <= node.parent < i):
                raise ValueError(f"nodes[{i}] has the parent {node.parent}, which is no node before it")
            if not 0 <= node.correct <= node.visits:
                raise ValueError(f"nodes[{i}] has {node.correct} correct of {node.visits} visits")
            if node.parent is not None:
                if self.nodes[node.parent].ends:
                    raise ValueError(f"nodes[{i}] goes on from nodes[{node.parent}], which ends the solution")
                below[node.parent][0] += node.visits
                below[node.parent][1] += node.correct
        for i, (node, (visits, correct)) in enumerate(zip(self.nodes, below, strict=True)):
            if visits > node.visits or correct > node.correct:
                raise ValueError(
                    f"nodes[{i}] has {node.correct} correct of {node.visits} visits, fewer than the nodes below it: "
                    f"{correct} of {visits}"
                )

    @property
    def children(self) -> list[list[int]]:
        """Of each node."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for i, node in enumerate(self.nodes):
            if node.parent is not None:
                found[node.parent].append(i)
        return found

    @property
    def heights(self) -> list[int]:
        """How many nodes are above each: 0 for the root."""
        found: list[int] = []
        for node in self.nodes:
            found.append(0 if node.parent is None else found[node.parent] + 1)
        return found

    def steps_to(self, i: int) -> tuple[str, ...]:
        """From the root to a node, its own included."""
        parts: list[tuple[str, ...]] = []
        at: int | None = i
        while at is not None:
            parts.append(self.nodes[at].steps)
            at = self.nodes[at].parent
        return tuple(step for part in reversed(parts) for step in part)


@dataclass(frozen=True, slots=True)
class AnnotatedTree:
    """A tree as something to learn from, and so many trees that HNC makes of it, with the seeds from `seed` on. `seed` also
    decides which nodes are selected."""

    tree: Tree
    hnc: int
    seed: int

    @property
    def problem(self) -> str:
        return self.tree.problem

    @property
    def meta(self) -> Mapping[str, Any]:
        return {}


def to_json(tree: Tree) -> str:
    """One line."""
    return json.dumps(asdict(tree), ensure_ascii=False)


def read_trees(path: str, limit: int | None = None) -> list[Tree]:
    """Raises UserError, with file and line, for one that is no tree."""
    return [_tree(row) for row in rows_named(path, limit)]


def _tree(row: Row) -> Tree:
    id, problem, answer, separator = row.text("id"), row.text("problem"), row.answer("answer"), row.of("separator", str)
    try:
        return Tree(id, problem, answer, tuple(_node(node) for node in row.objects("nodes")), separator)
    except ValueError as error:
        raise row.error(str(error)) from None


def _node(row: Row) -> Node:
    steps = row.of("steps", list)
    if not all(isinstance(step, str) and step.strip() for step in steps):
        raise row.error("field 'steps' holds what is no text")
    parent = None if row.value("parent") is None else row.of("parent", int)
    return Node(tuple(steps), parent, row.of("visits", int), row.of("correct", int), row.of("ends", bool))
