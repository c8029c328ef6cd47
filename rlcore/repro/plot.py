"""An experiment's curves, from what `rlcore.repro.page` writes: a line an arm in each panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

COLOURS = ("#0b6fb3", "#d1570b", "#148a62", "#b0608f", "#a97b00", "#5b6672")  # the report's, in its order
STYLES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))  # from the seventh arm on the colours come again, in another style


class Panel(NamedTuple):
    """Two keys of an arm's curve, and what stands under the panel."""

    x: str
    y: str
    label: str
    unit: str  # what stands beside it; panels of one unit share its axis
    doubling: bool = False  # x stands at 1, 2, 4, …


def described(panels: Sequence[Panel]) -> str:
    return ", ".join(f"{panel.unit} by {panel.label}" for panel in panels)


def plot(result: Mapping[str, Any], panels: Sequence[Panel], path: Path) -> None:
    """Lines are means over seeds, point by point; bands reach from the lowest seed to the highest. An arm is missing where its
    curve lacks the panel's keys. The legend has the arms in the order in which they end in their first panel."""
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": result["name"], "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
    with matplotlib.rc_context(style | {"axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(11, 4), layout="constrained")
        places = figure.subplots(1, len(panels), squeeze=False)[0]
        _share(places, panels)
        ends: dict[str, Any] = {}
        for index, (arm, seeds) in enumerate(result["curves"].items()):
            line = dict(
                color=COLOURS[index % len(COLOURS)], linestyle=STYLES[index // len(COLOURS) % len(STYLES)], linewidth=1.6
            )
            for axes, panel in zip(places, panels, strict=True):
                curves = [(curve[panel.x], curve[panel.y]) for curve in seeds.values() if panel.y in curve]
                if not curves:
                    continue
                points = min(len(y) for _, y in curves)  # a stop rule may end a seed early
                x, y = (np.array([curve[k][:points] for curve in curves]) for k in (0, 1))
                axes.fill_between(x.mean(0), y.min(0), y.max(0), color=line["color"], alpha=0.1, linewidth=0)
                [drawn] = axes.plot(x.mean(0), y.mean(0), **line)
                ends.setdefault(arm, drawn)
        for axes, panel in zip(places, panels, strict=True):
            axes.set(xlabel=panel.label)
            if panel.doubling:
                counts = sorted({n for seeds in result["curves"].values() for curve in seeds.values() for n in curve[panel.x]})
                axes.set_xscale("log", base=2)
                axes.set_xticks(counts, [str(n) for n in counts])
                axes.set_xticks([], minor=True)
                continue
            axes.set(xlim=(0, None))
            if panel.y == "accuracy":
                axes.axhline(result["target"], color="#0c0c01", linewidth=0.6, linestyle=":")
        places[0].set_title("lines: mean over seeds; bands: lowest to highest seed", fontsize=8, loc="left")
        best_first = sorted(ends, key=lambda arm: -ends[arm].get_ydata()[-1])
        figure.legend([ends[arm] for arm in best_first], best_first, loc="outside right center", fontsize=8, frameon=False)
        figure.savefig(path, metadata={"Date": None})


def _share(places: Sequence[Any], panels: Sequence[Panel]) -> None:
    """One axis for all panels of a unit, told at the first."""
    first: dict[str, Any] = {}
    for axes, panel in zip(places, panels, strict=True):
        if panel.unit in first:
            axes.sharey(first[panel.unit])
            axes.tick_params(labelleft=False)
        else:
            axes.set(ylabel=panel.unit)
            first[panel.unit] = axes
