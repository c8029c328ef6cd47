"""Solutions of the toy world's chains (`rlcore.data.sources.chain`), judged by what is true of their steps: no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlcore.data.sources.chain import chain
from rlcore.data.steps import LabelledSolution
from rlcore.toy.verdicts import verdicts

MIX = {
    **{"direct": 0.1, "terse": 0.1, "steps": 0.2, "verbose": 0.1},
    **{"wrong": 0.15, "misread": 0.15, "corrected": 0.1, "reread": 0.1},
}


def chain_steps(
    *,
    split: str = "train",
    count: int = 10_000,
    difficulty: Sequence[int] = (2, 5),
    strategies: Mapping[str, float] = MIX,
    inherited: bool = True,
    seed: int = 0,
) -> list[LabelledSolution]:
    """`meta["strategy"]` is how the solution was written. `inherited: false` leaves errors that follow an error unjudged."""
    problems = chain(split=split, count=count, difficulty=difficulty, strategies=strategies, seed=seed)
    return [
        LabelledSolution(
            id=problem.id,
            problem=problem.prompt,
            answer=problem.answer,
            steps=steps,
            labels=verdicts(problem.prompt, steps, inherited=inherited),
            meta={"strategy": problem.meta["strategy"]},
        )
        for problem in problems
        for steps in [tuple(str(problem.meta["solution"]).split("\n"))]
    ]
