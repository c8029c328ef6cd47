"""Makes a `Problem` of a row of someone's own data, and refuses one that nobody could solve. Serves the sources `file`, `hub`.

A grader (`rlcore.grading.graders`) is named for all rows, with its settings, or by a field of theirs:

    grader: roles      grader: {name: quantity, rel_tol: 0.01}      grader: {field: kind}

`meta` lists the fields that go with the problem as they are: what the grader asks of each row (`options`, `unit`), and the
columns that a TRL reward function takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlcore.data.rows import Row
from rlcore.errors import UserError
from rlcore.grading import graders
from rlcore.types import Problem

Grading = str | Mapping[str, Any]


def problem(
    row: Row, id_: str, *, prompt: str, answer: str, solution: str | None, grader: Grading, meta: Sequence[str]
) -> Problem:
    """Raises UserError, with the row's place, for a field that is not as it should be and a gold answer that its grader cannot
    read."""
    settings = {"name": grader} if isinstance(grader, str) else dict(grader)
    if ("name" in settings) == ("field" in settings):
        raise UserError(f"grader must have a name, or the field that holds it, not {settings}")
    name = row.text(settings.pop("field")) if "field" in settings else str(settings.pop("name"))
    solved = {"solution": row.text(solution)} if solution else {}
    gold = _json(row, answer) if name in ("json", "tool_calls") else row.answer(answer)
    made = Problem(id_, row.text(prompt), gold, name, {field: row.value(field) for field in meta} | settings | solved)
    if fault := graders.gold_fault(made):
        raise row.error(f"field {answer!r}: {' '.join(fault.split())}")
    return made


def _json(row: Row, name: str) -> str:
    """A value of JSON as its text; a string is one already."""
    value = row.value(name)
    return row.text(name) if isinstance(value, str) else json.dumps(value)
