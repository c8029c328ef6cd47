"""Writes `report.html`: one file that says how a run went and lets its completions be read. It asks the network for nothing.

`read` reads the run folder, `samples` chooses completions, `layout` sorts the metrics into sections, `figures` draws them,
`headline` tells what it came to, `monitor` which alarms were raised. Here they are put into `template.html`, with `style.css`
and `browser.js` inlined.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np

from rlcore.report.figures import DENSE, draw, slot, window
from rlcore.report.headline import headline, number
from rlcore.report.layout import MONITOR, Panel, Section, sections
from rlcore.report.monitor import alarms_of
from rlcore.report.read import Run, Series, read_run
from rlcore.report.samples import Samples, collect
from rlcore.run import alarms
from rlcore.run.alarms import Alarm
from rlcore.run.folder import write_aside

PLOTS = {  # that a job may leave in its run folder
    "calibration.svg": ("Calibration", "what is right of what it claims, on the problems held out"),
    "bench.svg": ("Drafts", "speed-up over plain decoding and tokens a pass over a row, by batch size"),
    "sensitivity.svg": ("By norm", "KL to the dense model by the relative norm of the change, and by the layer changed alone"),
}


def write_report(run: Path) -> Path:
    """Read the run folder, write its `report.html`, and return where it is. Raises UserError for what is no run."""
    data = read_run(run)
    report = run / "report.html"
    write_aside(report, _page(data, collect(data)))
    return report


def _page(run: Run, samples: Samples | None) -> str:
    curves, raised = sections(run.metrics), alarms.read(run.folder)
    return Template(_file("template.html")).substitute(
        style=_file("style.css"),
        name=escape(str(run.recipe.get("name", run.folder.name))),
        about=" · ".join(escape(part) for part in _about(run)),
        headline=headline(run),
        contents="".join(f'<a href="#{_anchor(section)}">{section.title}</a>' for section in curves),
        curves="".join(_section(section, run.metrics, raised if section.title == MONITOR else None) for section in curves),
        plots="".join(_plot(run.folder / file, *told) for file, told in PLOTS.items()),
        note=_note(run),
        samples=_samples(samples),
        recipe=escape(run.recipe_text),
    )


def _file(name: str) -> str:
    return (resources.files("rlcore.report") / name).read_text(encoding="utf-8")


def _about(run: Run) -> list[str]:
    """Model, job, processes and status."""
    algorithm = run.recipe.get("algorithm", {})
    plugins = [algorithm[part]["name"] for part in ("advantage", "loss") if part in algorithm]
    cluster = run.recipe.get("cluster")
    where = [f"{cluster['workers']} workers, {cluster['ranks']} ranks, {cluster['mode']['name']}"] if cluster else []
    planned = run.recipe.get("steps")
    step = f"step {run.last_step}" + (f" of {planned}" if planned else "")
    return [
        str(run.recipe.get("model", "no model")),
        str(run.recipe.get("job", "rl")) + (f" with {' and '.join(plugins)}" if plugins else ""),
        *where,
        f"finished at {step}" if run.summary else f"not finished: {step}",
    ]


def _anchor(section: Section) -> str:
    return section.title.lower().replace(" ", "-")


def _section(section: Section, metrics: Mapping[str, Series], raised: Sequence[Alarm] | None) -> str:
    """`raised`: the alarms to mark and to tell below the panels, in their own section."""
    marks = sorted({alarm.step for alarm in raised or ()})
    panels = "".join(_panel(panel, metrics, section.columns, marks) for panel in section.panels)
    grid = f'<div class="panels columns-{section.columns}">{panels}</div>' if panels else ""
    held = ", ".join(f"{escape(name)} {number(float(metrics[name].values[0]))}" for name in section.constant)
    constant = f'<p class="note">constant: {held}</p>' if held else ""
    told = "" if raised is None else alarms_of(raised)
    return f'<section id="{_anchor(section)}"><h2>{section.title}</h2>{grid}{constant}{told}</section>'


def _panel(panel: Panel, metrics: Mapping[str, Series], columns: int, marks: Sequence[int]) -> str:
    entries = [_entry(name, f"--series-{slot(i)}", metrics[name], panel) for i, name in enumerate(panel.parts)]
    entries += [_entry(panel.whole, "--ink", metrics[panel.whole], panel)] if panel.whole in panel.names else []
    legend = f"<ul>{''.join(entries)}</ul>"
    caption = f"<figcaption><h3>{escape(panel.title)}</h3>{legend}</figcaption>"
    return f"<figure>{caption}{draw(panel, metrics, columns, marks)}</figure>"


def _entry(name: str, color: str, series: Series, panel: Panel) -> str:
    """A line of the legend: colour and name (where the panel has several), the latest value."""
    finite = series.values[np.isfinite(series.values)]
    missing = len(series.values) - len(finite)
    label = "" if [name] == panel.names else f'<i style="background:var({color})"></i>{escape(name)} '
    latest = number(float(finite[-1])) if len(finite) else "no finite value"
    note = f" <em>{missing} of {len(series.values)} not finite</em>" if missing else ""
    return f"<li>{label}<b>{latest}</b>{note}</li>"


def _note(run: Run) -> str:
    points = max(len(series.values) for series in run.metrics.values())
    note = "All by training step; the number beside a name is its latest value."
    if "eval/accuracy_low" in run.metrics:
        note += " The band of the evaluation accuracy is its 95 % interval."
    if points >= DENSE:
        note += f" Where there are {DENSE} points or more, the line is their rolling mean (up to {window(points)} steps wide)"
        note += " and the band one standard deviation to either side; the points are faint behind it."
    return note


def _plot(plot: Path, heading: str, title: str) -> str:
    if not plot.exists():
        return ""
    data = b64encode(plot.read_bytes()).decode()
    picture = f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{title}"><figcaption>{title}</figcaption></figure>'
    return f'<section id="{plot.stem}"><h2>{heading}</h2>{picture}</section>'


def _samples(samples: Samples | None) -> str:
    if samples is None:
        return "<p>This run kept no ledger, so there are no completions to show.</p>"
    shown = f"{len(samples.samples):,} of {samples.completions:,} completions from {samples.steps:,} steps"
    if len(samples.samples) < samples.completions:
        shown += ": whole groups of the first step, the last and some between, and the run's highest and lowest rewards"
    data = json.dumps([asdict(sample) for sample in samples.samples], ensure_ascii=False, allow_nan=False)
    return Template(_file("samples.html")).substitute(
        shown=shown,
        data=data.replace("<", "\\u003c"),  # so that no text can end the script element
        script=_file("browser.js"),
    )
