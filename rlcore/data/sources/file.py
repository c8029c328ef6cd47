"""A file of your own: jsonl, json (an array of objects), csv or parquet."""

from __future__ import annotations

from pathlib import Path

from rlcore.data.rows import rows_of_file
from rlcore.data.splits import SPLITS, known_split, split_of
from rlcore.types import Problem


def file(
    *,
    path: str,
    prompt: str = "prompt",
    answer: str = "answer",
    solution: str | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> list[Problem]:
    """`prompt`, `answer` and `solution` name the fields. `split` cuts one file in two: a problem's text decides its side."""
    where = Path(path).expanduser()
    wanted = (known_split("file", split),) if split else SPLITS
    problems = (
        Problem(
            id=f"file/{where.stem}/{row.number}",
            prompt=row.text(prompt),
            answer=row.answer(answer),
            meta={"solution": row.text(solution)} if solution else {},
        )
        for row in rows_of_file(where, limit)
    )
    return [problem for problem in problems if split_of(problem.prompt) in wanted]
