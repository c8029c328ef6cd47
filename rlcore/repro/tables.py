"""Tables in Markdown, and how numbers and intervals stand in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlcore.report.headline import number


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def of_arms(result: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    """Head and rows of a table of arms: those of the metrics in `columns` that any arm has, by what they are called."""
    arms, seeds = result["arms"], len(result["seeds"])
    shown = [metric for metric in columns if any(values[metric]["seeds"] for values in arms.values())]
    rows = ([arm, *(cell(values[metric], seeds) for metric in shown)] for arm, values in arms.items())
    return ["arm", *(columns[metric] for metric in shown)], rows


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
