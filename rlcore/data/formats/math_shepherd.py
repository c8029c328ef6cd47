"""Math-Shepherd: steps labelled by whether completions from them reach the answer (Wang et al., 2023, arXiv 2312.08935).

`input` is the problem and its solution with a marker, `ки`, at the end of each step; `label` is the same text with `+` or `-`
in the markers' places. There is no reference answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rlcore.data.files import rows_named
from rlcore.data.rows import Row
from rlcore.data.steps import LabelledSolution, StepLabel

MARKER = "ки"
LABELS: dict[str, StepLabel] = {"+": "correct", "-": "wrong"}
_FIRST_STEP = re.compile(r"step 1\s*:", re.IGNORECASE)


def math_shepherd(*, path: str, limit: int | None = None) -> list[LabelledSolution]:
    """`meta["task"]` is GSM8K or MATH. Text after the last marker is a step that nobody judged."""
    return [_solution(row, f"{Path(path).stem}/{row.number}") for row in rows_named(path, limit)]


def _solution(row: Row, id: str) -> LabelledSolution:
    *steps, unmarked = row.text("input").split(MARKER)
    if not steps:
        raise row.error(f"field 'input' has no step that ends with {MARKER!r}")
    labels: list[StepLabel | None] = [*_labels(row, steps, unmarked)]
    if unmarked.strip():
        steps, labels = [*steps, unmarked], [*labels, None]
    # The published data has a few rows with a marker within the problem: nobody can tell where the solution begins.
    first = _FIRST_STEP.search(steps[0])
    begin = first.start() if first else len(steps[0])
    return LabelledSolution(
        id=id,
        problem=steps[0][:begin].strip(),
        answer=None,
        steps=tuple(step.strip() for step in (steps[0][begin:], *steps[1:])),
        labels=tuple(labels),
        meta={
            **row.without("input", "label"),
            "task": row.text("task"),
            **({} if first else {"unusable": "there is no 'Step 1:' before the first marker"}),
        },
    )


def _labels(row: Row, steps: Sequence[str], unmarked: str) -> list[StepLabel]:
    """The signs that `label` has where `input` has its markers; between them both must say the same."""
    text, position, labels = row.text("label"), 0, []
    for number, step in enumerate(steps, 1):
        end = position + len(step)
        if text[position:end] != step:
            raise row.error(f"field 'label' has another text than field 'input' before marker {number} of {len(steps)}")
        if text[end : end + 1] not in LABELS:
            raise row.error(f"field 'label' has {text[end : end + 1]!r}, neither + nor -, for marker {number} of {len(steps)}")
        labels.append(LABELS[text[end]])
        position = end + 1
    if text[position:] != unmarked:
        raise row.error("field 'label' has another text than field 'input' after the last marker")
    return labels
