"""MATH500: the 500 problems of MATH's test set that were held out of PRM800K (Lightman et al., 2023, arXiv 2305.20050)."""

from __future__ import annotations

from rlcore.data.files import benchmark_rows
from rlcore.data.splits import known_split
from rlcore.types import Problem


def math500(*, split: str = "test", path: str | None = None, limit: int | None = None) -> list[Problem]:
    known_split("math500", split, ("test",))
    rows = benchmark_rows(
        "math500_test.jsonl", dataset="HuggingFaceH4/MATH-500", configs=[None], split="test", path=path, limit=limit
    )
    return [
        Problem(
            id=f"math500/{row.text('unique_id').removesuffix('.json')}",
            prompt=row.text("problem"),
            answer=row.text("answer"),
            meta={"subject": row.text("subject"), "level": row.value("level"), "solution": row.text("solution")},
        )
        for row in rows
    ]
