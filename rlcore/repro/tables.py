"""Tables in Markdown, and how numbers and intervals stand in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlcore.report.headline import number


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def cell(values: Mapping[str, Any], seeds: int) -> str:
    """`0.713 (0.68 to 0.75)`; where not every seed has a value, how many have."""
    if values["mean"] is None:
        return f"{values['seeds']} of {seeds} seeds" if values["seeds"] else "none"
    bounds = f" ({reaching([values['low'], values['high']])})" if values["low"] is not None else ""
    return f"{number(values['mean'])}{bounds}"


def reaching(bounds: Sequence[float] | None) -> str:
    return "—" if bounds is None else f"{_signed(bounds[0])} to {_signed(bounds[1])}"


def _signed(value: float) -> str:
    return number(value).replace("-", "−")
