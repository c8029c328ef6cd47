"""What the run came to: a table of what was estimated, with intervals, before → after. Then the summary's other numbers.

    accuracy_before  accuracy_before_low  accuracy_before_best_temperature  accuracy_after  …  wall_s

`X_STAGE` stands in row X and in the column of its stage; `X_STAGE_low` and `X_STAGE_high` are its interval.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

from rlcore.report.read import Run, Series

STAGED = re.compile(r"(?P<quantity>.+)_(?P<stage>(?:before|after)(?:_.+)?)")


def headline(run: Run) -> str:
    """HTML. A run that has not ended yet shows its first and latest evaluation instead."""
    summary = run.summary or _evaluations(run.metrics)
    plain = {key: value for key, value in summary.items() if not _is_bound(key, summary)}
    staged = {key: match.group("quantity", "stage") for key in plain if (match := STAGED.fullmatch(key))}
    estimated = {quantity for key, (quantity, _) in staged.items() if f"{key}_low" in summary}
    rows = {key: place for key, place in staged.items() if place[0] in estimated}
    return _table(summary, rows) + _facts({key: value for key, value in plain.items() if key not in rows})


def number(value: Any) -> str:
    """A number as a reader wants it: 0.713, 8.25, 40.1, 12,400, 3.1e-07; anything else as it is."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "—" if value is None else str(value)
    size = abs(value)
    if isinstance(value, int) or size >= 1000:
        return f"{value:,.0f}"
    if 0 < size < 0.01:
        return f"{value:.3g}"
    return f"{value:.3f}" if size < 1 else f"{value:.2f}" if size < 10 else f"{value:.1f}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _evaluations(metrics: Mapping[str, Series]) -> dict[str, float]:
    """The first evaluation as before, the latest, where there is another, as after."""
    summary: dict[str, float] = {}
    for bound in ("", "_low", "_high"):
        if series := metrics.get(f"eval/accuracy{bound}"):
            summary |= {f"accuracy_{stage}{bound}": float(series.values[i]) for stage, i in _ends(series).items()}
    return summary


def _ends(series: Series) -> dict[str, int]:
    return {"before": 0, "after": -1} if len(series.values) > 1 else {"before": 0}


def _is_bound(key: str, summary: Mapping[str, Any]) -> bool:
    whole = key.removesuffix("_low").removesuffix("_high")
    return whole != key and whole in summary


def _table(summary: Mapping[str, Any], staged: Mapping[str, tuple[str, ...]]) -> str:
    if not staged:
        return ""
    quantities = dict.fromkeys(quantity for quantity, _ in staged.values())
    stages = sorted({stage for _, stage in staged.values()}, key=lambda stage: (stage.startswith("after"), stage))
    head = "".join(f"<th scope=col>{_words(stage.replace('_', ', ', 1))}" for stage in stages)
    rows = []
    for quantity in quantities:
        cells = "".join(f"<td>{_cell(f'{quantity}_{stage}', summary)}" for stage in stages)
        rows.append(f"<tr><th scope=row>{_words(quantity)}{cells}<td>{_change(quantity, summary)}")
    return f"<table class=headline><thead><tr><th>{head}<th scope=col>change<tbody>{''.join(rows)}</table>"


def _cell(key: str, summary: Mapping[str, Any]) -> str:
    if key not in summary:
        return "—"
    low, high = summary.get(f"{key}_low"), summary.get(f"{key}_high")
    interval = f" <small>{escape(number(low))} – {escape(number(high))}</small>" if low is not None and high is not None else ""
    return f"<b>{escape(number(summary[key]))}</b>{interval}"


def _change(quantity: str, summary: Mapping[str, Any]) -> str:
    before, after = summary.get(f"{quantity}_before"), summary.get(f"{quantity}_after")
    return "" if before is None or after is None else f"{'+' if after >= before else '−'}{number(abs(after - before))}"


def _facts(facts: Mapping[str, Any]) -> str:
    """What has no interval: a line each, before and after together."""
    items = []
    for key, value in facts.items():
        quantity, told = key.removesuffix("_before"), _fact(key, value)
        if f"{quantity}_after" in facts and quantity != key:
            after = _fact(key, facts[f"{quantity}_after"])
            items.append((quantity, told if told == after else f"{told} → {after}"))
        elif f"{key.removesuffix('_after')}_before" not in facts:
            items.append((key.removesuffix("_s"), told))
    lines = "".join(f"<div><dt>{_words(label)}<dd>{told}</div>" for label, told in items)
    return f"<dl class=facts>{lines}</dl>" if lines else ""


def _fact(key: str, value: Any) -> str:
    if isinstance(value, Mapping):  # such as the accuracy at each temperature
        return escape(" · ".join(f"{inner}: {number(held)}" for inner, held in value.items()))
    seconds = key.endswith("_s") and isinstance(value, int | float)
    return escape(duration(value) if seconds else number(value))


def _words(key: str) -> str:
    return escape(key.replace("_", " "))
