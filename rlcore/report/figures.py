"""Draws one panel as inline SVG. Titles and legends are the page's (`rlcore.report.page`), ticks alone are drawn here.

Colours are named by slot and become CSS variables in the SVG, so that one figure serves the light and the dark page.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlcore.report.layout import Panel, bounds
from rlcore.report.read import Series

WIDTH, HEIGHT = 13.0, 2.3  # inches of a row of panels; the page scales them
DENSE = 24  # points from which on a curve is drawn as its rolling mean, with its points faint behind it
SLOTS = 6  # colours: `--series-0` … in style.css

# Stand-ins that matplotlib takes for colours, replaced by CSS variables in the SVG.
_INK, _GRID, _BAD = "#0c0c01", "#0c0c02", "#0c0c03"
_SERIES = [f"#0c0d0{slot}" for slot in range(SLOTS)]
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": _GRID,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.useoffset": False,
    "grid.color": _GRID,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "ytick.major.size": 0,
}


def draw(panel: Panel, metrics: Mapping[str, Series], columns: int, marks: Sequence[int] = ()) -> str:
    """The panel as an `<svg>` element, one of so many in a row. All panels of a run share their range of steps. `marks` are
    steps at which there is a line across."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": panel.title}):  # element ids differ between the page's figures
        figure = Figure(figsize=(WIDTH / columns, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        if panel.whole:
            _stack(axes, panel, metrics)
        else:
            _lines(axes, panel, metrics)
        for step in marks:
            axes.axvline(step, color=_BAD, linewidth=1, linestyle="--")
        _frame(axes, panel, metrics)
        return _svg(figure, panel.title)


def window(points: int) -> int:
    """The width of the rolling mean; odd, so that it is centred."""
    return max(5, points // 15) | 1


def slot(index: int) -> int:
    """The colour of a panel's n-th series."""
    return index % SLOTS


def _lines(axes: Axes, panel: Panel, metrics: Mapping[str, Series]) -> None:
    for index, name in enumerate(panel.names):
        series, interval, color = metrics[name], bounds(name, metrics), _SERIES[slot(index)]
        if interval:
            _interval(axes, *interval, color)
        if len(series.steps) < DENSE or interval:
            axes.plot(series.steps, series.values, color=color, linewidth=1.6, marker="o", markersize=3.5)
        else:
            _rolling(axes, series, color, band=len(panel.names) == 1)


def _interval(axes: Axes, low: Series, high: Series, color: str) -> None:
    steps = np.intersect1d(low.steps, high.steps)
    below, above = low.values[np.isin(low.steps, steps)], high.values[np.isin(high.steps, steps)]
    axes.fill_between(steps, below, above, color=color, alpha=0.18, linewidth=0)
    axes.vlines(steps, below, above, color=color, alpha=0.35, linewidth=1)  # a single evaluation has no area


def _rolling(axes: Axes, series: Series, color: str, band: bool) -> None:
    mean, deviation = _moments(series.values, window(len(series.values)))
    axes.plot(series.steps, series.values, color=color, linewidth=0.7, alpha=0.4)
    axes.plot(series.steps, mean, color=color, linewidth=1.8)
    if band:
        axes.fill_between(series.steps, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0)


def _moments(values: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rolling mean and standard deviation over the finite values within the window, which is shorter at the ends."""
    finite = np.isfinite(values)
    centre = values[finite].mean() if finite.any() else 0.0
    shifted = np.where(finite, values - centre, 0.0)  # keeps the difference of squares below accurate
    ones = np.ones(width)
    count = np.convolve(finite, ones, "same")
    count[count == 0] = np.nan
    mean = np.convolve(shifted, ones, "same") / count
    square = np.convolve(shifted**2, ones, "same") / count
    return mean + centre, np.sqrt(np.maximum(square - mean**2, 0.0))


def _stack(axes: Axes, panel: Panel, metrics: Mapping[str, Series]) -> None:
    """Each step is a column as wide as a step, so that a run of one step shows something too."""
    steps = np.unique(np.concatenate([metrics[name].steps for name in panel.names]))
    base = np.zeros(len(steps))
    edges = (steps[:, None] + [-0.5, 0.5]).ravel()
    for index, name in enumerate(panel.parts):
        top = base + _at(metrics[name], steps)
        axes.fill_between(edges, base.repeat(2), top.repeat(2), color=_SERIES[slot(index)], alpha=0.75, linewidth=0)
        base = top
    if panel.whole in panel.names:
        axes.plot(edges, _at(metrics[panel.whole], steps).repeat(2), color=_INK, linewidth=0.9)


def _at(series: Series, steps: np.ndarray) -> np.ndarray:
    """The values at the given steps, 0 at those where the series has none: what did not happen took no time."""
    values = np.zeros(len(steps))
    values[np.searchsorted(steps, series.steps)] = np.nan_to_num(series.values)
    return values


def _frame(axes: Axes, panel: Panel, metrics: Mapping[str, Series]) -> None:
    first = min(series.steps[0] for series in metrics.values())
    last = max(series.steps[-1] for series in metrics.values())
    margin = max((last - first) * 0.02, 0.5)
    axes.set_xlim(first - margin, last + margin)
    if all(np.nanmin(metrics[name].values, initial=0.0) >= 0 for name in panel.names):
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.0))  # no band reaches below what can be
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    _, _, body = buffer.getvalue().partition("<svg ")
    _, _, body = body.partition("</defs>")  # the first holds a style sheet that would reach the entire page
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font-size[^;]*; font-family[^;]*; ", "", body)  # the page's own
    named = {_INK: "ink", _GRID: "grid", _BAD: "bad"} | {color: f"series-{i}" for i, color in enumerate(_SERIES)}
    for color, variable in named.items():
        body = body.replace(color, f"var(--{variable})")
    width, height = figure.get_size_inches() * 72
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(title)}">{body}'
