"""The toy world's chains as a policy solves them, in trees of `job: annotate`, every step judged by what is true of it."""

from __future__ import annotations

from rlcore.data.steps import LabelledSolution, StepLabel
from rlcore.data.trees import read_trees
from rlcore.toy import world


def chain_trees(*, path: str, limit: int | None = None) -> list[LabelledSolution]:
    """Each solution that a tree holds once. `limit` is of trees. Raises UserError for what is no tree of a chain."""
    solutions = []
    for tree in read_trees(path, limit):
        ends = dict.fromkeys(tree.steps_to(i) for i, below in enumerate(tree.children) if not below)
        for number, steps in enumerate(filter(None, ends)):  # without those that say nothing
            judged = world.label_steps(world.parse_chain(tree.problem), "\n".join(steps))
            labels: tuple[StepLabel, ...] = tuple("correct" if step.correct else "wrong" for step in judged)
            solutions.append(LabelledSolution(f"{tree.id}#{number}", tree.problem, tree.answer, steps, labels, {}))
    return solutions
