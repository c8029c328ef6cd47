"""ProcessBench: solutions of which people marked the first wrong step (Zheng et al., 2024, arXiv 2412.06559)."""

from __future__ import annotations

from rlcore.data.files import rows_named
from rlcore.data.rows import Row
from rlcore.data.steps import LabelledSolution, StepLabel


def processbench(*, path: str, limit: int | None = None) -> list[LabelledSolution]:
    """Nobody judged the steps after the first wrong one. `meta["final_answer_correct"]` is about the answer alone."""
    return [_solution(row) for row in rows_named(path, limit)]


def _solution(row: Row) -> LabelledSolution:
    steps, wrong = row.texts("steps"), row.of("label", int)
    if not -1 <= wrong < len(steps):
        raise row.error(f"field 'label' is {wrong}, neither -1 nor the index of one of the {len(steps)} steps, from 0")
    return LabelledSolution(
        id=f"processbench/{row.text('id')}",
        problem=row.text("problem"),
        answer=None,
        steps=steps,
        labels=tuple(_label(index, wrong) for index in range(len(steps))),
        meta={"generator": row.text("generator"), "final_answer_correct": row.of("final_answer_correct", bool)},
    )


def _label(index: int, wrong: int) -> StepLabel | None:
    if wrong == -1 or index < wrong:
        return "correct"
    return "wrong" if index == wrong else None
