"""The toy world's chains as a policy solves them, in trees of `job: annotate`, judged by what is true of their steps."""

from __future__ import annotations

from collections.abc import Iterator

from rlcore.data.steps import LabelledSolution
from rlcore.data.trees import Tree, read_trees
from rlcore.errors import UserError
from rlcore.toy.verdicts import verdicts


def chain_trees(*, path: str, inherited: bool = True, limit: int | None = None) -> list[LabelledSolution]:
    """Each solution that a tree holds once; `meta["unfinished"]` is there where the tree went no further. `inherited:
    false` leaves errors that follow an error unjudged. `limit` is of trees. Raises UserError for what is no tree of a chain,
    one line a step."""
    return [solution for tree in read_trees(path, limit) for solution in _solutions(tree, path, inherited)]


def _solutions(tree: Tree, path: str, inherited: bool) -> Iterator[LabelledSolution]:
    tips: dict[tuple[str, ...], bool] = {}
    for i, below in enumerate(tree.children):
        if not below and (steps := tree.steps_to(i)):  # without those that say nothing
            tips[steps] = tips.get(steps, False) or tree.nodes[i].ends
    for number, (steps, ends) in enumerate(tips.items()):
        try:
            labels = verdicts(tree.problem, steps, inherited=inherited)
            meta = {} if ends else {"unfinished": True}
            yield LabelledSolution(f"{tree.id}#{number}", tree.problem, tree.answer, steps, labels, meta)
        except ValueError as error:
            raise UserError(f"{path}: tree {tree.id} is none of a chain, one line a step: {error}") from error
