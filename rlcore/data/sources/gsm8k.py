"""GSM8K: grade-school word problems with worked solutions (Cobbe et al., 2021, arXiv 2110.14168)."""

from __future__ import annotations

import re

from rlcore.data.files import benchmark_rows
from rlcore.data.rows import Row
from rlcore.data.splits import known_split
from rlcore.types import Problem


def gsm8k(*, split: str = "train", path: str | None = None, limit: int | None = None) -> list[Problem]:
    """The answer stands after `####`. The calculator annotations, `<<48/2=24>>`, are taken out of the solution."""
    known_split("gsm8k", split)
    file = f"gsm8k_{split}.jsonl"
    rows = benchmark_rows(file, dataset="openai/gsm8k", configs=["main"], split=split, path=path, limit=limit)
    return [_problem(row, split) for row in rows]


def _problem(row: Row, split: str) -> Problem:
    solution, mark, answer = row.text("answer").rpartition("####")
    if not mark:
        raise row.error("there is no '####' in field 'answer'")
    if not answer.strip():
        raise row.error("there is nothing after '####' in field 'answer'")
    return Problem(
        id=f"gsm8k/{split}/{row.number}",
        prompt=row.text("question"),
        answer=answer.strip().replace(",", ""),
        meta={"solution": re.sub(r"<<.*?>>", "", solution).strip()},
    )
