"""A file of your own: jsonl, json (an array of objects), csv or parquet."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from rlcore.data.problems import Grading, problem
from rlcore.data.rows import rows_of_file
from rlcore.data.splits import SPLITS, known_split, split_of
from rlcore.types import Problem


def file(
    *,
    path: str,
    prompt: str = "prompt",
    answer: str = "answer",
    solution: str | None = None,
    grader: Grading = "math",
    meta: Sequence[str] = (),
    split: str | None = None,
    limit: int | None = None,
) -> list[Problem]:
    """`prompt`, `answer`, `solution` and `meta` name the fields; `rlcore.data.problems` says what `grader` may be. `split`
    cuts one file in two: a problem's text decides its side."""
    where = Path(path).expanduser()
    wanted = (known_split("file", split),) if split else SPLITS
    read = functools.partial(problem, prompt=prompt, answer=answer, solution=solution, grader=grader, meta=meta)
    problems = [read(row, f"file/{where.stem}/{row.number}") for row in rows_of_file(where, limit)]
    return [each for each in problems if split_of(each.prompt) in wanted]
