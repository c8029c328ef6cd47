"""A dataset of the Hugging Face hub, or one in its local cache."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from rlcore.data.problems import Grading, problem
from rlcore.data.rows import rows_of_hub
from rlcore.types import Problem


def hub(
    *,
    dataset: str,
    config: str | None = None,
    split: str = "train",
    prompt: str = "prompt",
    answer: str = "answer",
    solution: str | None = None,
    grader: Grading = "math",
    meta: Sequence[str] = (),
    limit: int | None = None,
) -> list[Problem]:
    """`prompt`, `answer`, `solution` and `meta` name the fields; `rlcore.data.problems` says what `grader` may be."""
    remedy = "check its name, config and split, and the network; or download it and use the source 'file'"
    rows = rows_of_hub(dataset, config, split, limit, remedy=remedy)
    read = functools.partial(problem, prompt=prompt, answer=answer, solution=solution, grader=grader, meta=meta)
    return [read(row, f"{dataset}/{split}/{row.number}") for row in rows]
