"""PRMBench: right solutions into which errors of nine classes were written (Song et al., 2025, arXiv 2501.03124)."""

from __future__ import annotations

from rlcore.data.files import rows_named
from rlcore.data.rows import Row
from rlcore.data.steps import LabelledSolution


def prmbench(*, path: str, limit: int | None = None) -> list[LabelledSolution]:
    """The modified process of each row, to its modified question; `meta` holds the original ones and `classification`.

    The error steps are wrong and all others correct. Some rows name error steps past the last step: they are unusable.
    """
    return [_solution(row) for row in rows_named(path, limit)]


def _solution(row: Row) -> LabelledSolution:
    steps, wrong = row.texts("modified_process"), row.integers("error_steps")
    if any(number < 1 for number in wrong):
        raise row.error(f"field 'error_steps' holds {min(wrong)}, and steps are counted from 1")
    beyond = any(number > len(steps) for number in wrong)
    return LabelledSolution(
        id=f"prmbench/{row.text('classification')}/{row.text('idx')}",
        problem=row.text("modified_question"),
        answer=None,
        steps=steps,
        labels=tuple("wrong" if number in wrong else "correct" for number in range(1, len(steps) + 1)),
        meta={
            **row.without("modified_question", "modified_process", "idx"),
            "original_question": row.text("original_question"),
            "original_process": row.texts("original_process"),
            **({"unusable": "an error step is past the last step"} if beyond else {}),
        },
    )
