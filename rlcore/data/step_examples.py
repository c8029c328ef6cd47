r"""What reward models learn from judged solutions (`rlcore.data.steps`): is `current` right, after `previous`?

    ORM    a whole solution                                               label of its last step
    PRM    every judged candidate of every step, after the chosen ones before it          its label
    HRM    those, and each with the chosen step before it, merged into one step           label of the last

(Hierarchical reward models: Wang et al. 2025, arXiv 2503.13551; the rules for PRM800K are those of its released code.) Merged
pairs teach that a step may repair the one before it. In PRM800K none does, as only what was right is gone on from; so the pair
of a wrong candidate and the chosen one of the same step, the wrong step and then the right one in its place, is built where
asked (`repaired`), and counted.

What they learn from trees, whose steps are labelled by what came of them, is in `rlcore.data.tree_examples`.

Neutral steps (not wrong, and no progress) are dropped, or counted as right or wrong. Steps that nobody judged are no examples,
nor are an annotator's own, which had to be right and are gone on from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlcore.data.steps import AnnotatedSolution, AnnotatedStep, Candidate, LabelledSolution, StepLabel
from rlcore.data.trees import AnnotatedTree

Kind = Literal["orm", "prm", "hrm"]
Neutral = Literal["drop", "positive", "negative"]
Made = Literal["solution", "step", "merged", "repaired"]
Judged = AnnotatedSolution | LabelledSolution | AnnotatedTree
MOST_WRONG = 4  # wrong solutions of the ORM for each right one


@dataclass(frozen=True, slots=True)
class Example:
    """`current` is one step, several that are merged, or all of a solution. `label` is 1 for right and 0 for wrong; of trees a
    probability."""

    problem: str
    previous: tuple[str, ...]
    current: tuple[str, ...]
    label: float
    made: Made


def examples(kind: Kind, solution: Judged, *, neutral: Neutral = "drop", repaired: bool = False) -> list[Example]:
    """Each once, in the order of the steps. Nothing of a solution with `meta["unusable"]`, or that its annotator gave up; no
    whole solution of one that is `unfinished`."""
    if isinstance(solution, AnnotatedTree):
        from rlcore.data.tree_examples import tree_examples  # which makes examples too

        return tree_examples(kind, solution)
    if "unusable" in solution.meta or solution.meta.get("finish_reason") in ("bad_problem", "give_up"):
        return []
    if kind == "orm" and ("unfinished" in solution.meta or not solution.steps):
        return []
    if isinstance(solution, LabelledSolution):
        solution = _annotated(solution)
    found = {"orm": _orm, "prm": _prm, "hrm": _hrm}[kind](solution, neutral)
    if kind == "hrm" and repaired:
        found = itertools.chain(found, _repaired(solution, neutral))
    return list(dict.fromkeys(found))


def _annotated(solution: LabelledSolution) -> AnnotatedSolution:
    """Every step with one candidate, which was gone on from."""
    steps = tuple(AnnotatedStep((Candidate(t, label),), 0) for t, label in zip(solution.steps, solution.labels, strict=True))
    return AnnotatedSolution(solution.id, solution.problem, solution.answer, steps, solution.meta)


def _prm(solution: AnnotatedSolution, neutral: Neutral) -> Iterator[Example]:
    chosen = solution.trajectory.steps
    for i, text, label in _judged(solution, neutral):
        yield Example(solution.problem, chosen[:i], (text,), label, "step")


def _hrm(solution: AnnotatedSolution, neutral: Neutral) -> Iterator[Example]:
    yield from _prm(solution, neutral)
    chosen = solution.trajectory.steps
    for i, text, label in _judged(solution, neutral):
        if i:
            yield Example(solution.problem, chosen[: i - 1], (chosen[i - 1], text), label, "merged")


def _repaired(solution: AnnotatedSolution, neutral: Neutral) -> Iterator[Example]:
    trajectory = solution.trajectory
    for i, text, label in _judged(solution, neutral):
        if not label and i < len(trajectory.steps) and trajectory.labels[i] == "correct":
            yield Example(solution.problem, trajectory.steps[:i], (text, trajectory.steps[i]), 1.0, "repaired")


def _orm(solution: AnnotatedSolution, neutral: Neutral) -> Iterator[Example]:
    """The solution with every judged candidate of its last step; and wrong ones whose last steps are all wrong candidates, from
    further and further back, while every step there has some and there are at most MOST_WRONG for each right one."""
    trajectory, judged = solution.trajectory, list(_judged(solution, neutral))
    chosen, last = trajectory.steps, len(solution.steps) - 1
    ends = {(*chosen[:last], text): label for i, text, label in judged if i == last}
    if len(chosen) > last and trajectory.labels[last] == "correct":  # perhaps by the annotator's own hand
        ends |= {chosen: 1.0}
    for steps, label in ends.items():
        yield Example(solution.problem, (), steps, label, "solution")
    right = sum(ends.values())
    wrong = [tuple(text for j, text, label in judged if j == i and not label) for i in range(last + 1)]
    made = len(wrong[last])
    for first in range(last - 1, -1, -1):
        made += (count := _product(len(texts) for texts in wrong[first:]))
        if not count or made > MOST_WRONG * right:
            return
        for texts in itertools.product(*wrong[first:]):
            yield Example(solution.problem, (), (*chosen[:first], *texts), 0.0, "solution")


def _product(counts: Iterator[int]) -> int:
    result = 1
    for count in counts:
        result *= count
    return result


def _judged(solution: AnnotatedSolution, neutral: Neutral) -> Iterator[tuple[int, str, float]]:
    """Step, text and label of every candidate of the model's that has a label."""
    values: dict[StepLabel | None, float | None] = {
        "correct": 1.0,
        "wrong": 0.0,
        "neutral": {"drop": None, "positive": 1.0, "negative": 0.0}[neutral],
    }
    for i, step in enumerate(solution.steps):
        for candidate in step.candidates:
            if not candidate.human and (label := values.get(candidate.label)) is not None:
                yield i, candidate.text, label
