"""Trees that `job: annotate` wrote (`rlcore.data.trees`): steps labelled by what came of them."""

from __future__ import annotations

from pydantic import NonNegativeInt

from rlcore.data.trees import AnnotatedTree, read_trees


def trees(*, path: str, hnc: NonNegativeInt = 0, seed: int = 0, limit: int | None = None) -> list[AnnotatedTree]:
    """`hnc`: how many changed trees are learned from beside each (true: one; `rlcore.data.hnc`). `seed` decides what moves in
    them, and which nodes of all of them are selected."""
    return [AnnotatedTree(tree, hnc, seed) for tree in read_trees(path, limit)]
