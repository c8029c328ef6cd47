"""MATH: competition problems, the training split (Hendrycks et al., 2021, arXiv 2103.03874). Its test problems: `math500`."""

from __future__ import annotations

from rlcore.data.files import benchmark_rows
from rlcore.data.rows import Row
from rlcore.data.splits import known_split
from rlcore.grading.extract import boxed
from rlcore.types import Problem

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


def math(*, split: str = "train", path: str | None = None, limit: int | None = None) -> list[Problem]:
    """`math_train.json` holds the final answer of each problem, the hub a solution with the answer boxed."""
    known_split("math", split, ("train",))
    rows = benchmark_rows(
        "math_train.json", dataset="EleutherAI/hendrycks_math", configs=SUBJECTS, split="train", path=path, limit=limit
    )
    return [_problem(row, number) for number, row in enumerate(rows, 1)]


def _problem(row: Row, number: int) -> Problem:
    solved = {"solution": row.text("solution")} if "solution" in row.fields else {}
    answer = (boxed(solved["solution"]) or "") if solved else row.string("final_answer")
    # Two of the 7500 rows are known to have no final answer, so an empty one is counted and not an error.
    unusable = {} if answer else {"unusable": "no final answer"}
    return Problem(f"math/train/{number}", row.text("problem"), answer, meta=solved | unusable)
