"""Accuracy by N, a line for each way to choose, with its interval as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcore.evaluation.best_of_n import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0b6fb3", "#d1570b", "#148a62", "#b0608f", "#a97b00", "#5b6672")  # the report's, in its order
TITLES = {"whole": "whole solutions", "stepwise": "step by step"}
BOUNDS = {"pass": (0, (1, 1.5)), "majority": (0, (5, 2))}  # line styles


def draw(file: Path, judges: Mapping[str, Mapping[str, Curve]], bounds: Mapping[str, Curve]) -> None:
    """`judges`: the curves of each by method, of TITLES; a panel a method."""
    import matplotlib
    from matplotlib.figure import Figure

    methods = [method for method in TITLES if any(method in curves for curves in judges.values())]
    style: Any = {"svg.hashsalt": "best-of-n", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
    with matplotlib.rc_context(style | {"axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(1.5 + 4 * len(methods), 3.8), layout="constrained")
        panels: Sequence[Axes] = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
        lines = {}
        for axes, method in zip(panels, methods, strict=True):
            for name, curve in bounds.items():
                x, y = list(curve), [estimate.value for estimate in curve.values()]
                [lines[name]] = axes.plot(x, y, color="0.55", linewidth=1.2, linestyle=BOUNDS[name])
            for index, (name, curves) in enumerate(judges.items()):
                if method in curves:
                    lines[name] = _line(axes, curves[method], COLOURS[index % len(COLOURS)])
            counts = sorted({n for curves in judges.values() for n in curves.get(method, ())})
            axes.set_xscale("log", base=2)
            axes.set_xticks(counts, [str(n) for n in counts])
            axes.set_xticks([], minor=True)
            axes.set(xlabel="N", title=TITLES[method])
        panels[0].set(ylabel="accuracy of best-of-N")
        figure.legend(list(lines.values()), list(lines), loc="outside right center", fontsize=8, frameon=False)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _line(axes: Axes, curve: Curve, colour: str) -> Any:
    x, estimates = list(curve), list(curve.values())
    axes.fill_between(x, [e.low for e in estimates], [e.high for e in estimates], color=colour, alpha=0.12, linewidth=0)
    [line] = axes.plot(x, [e.value for e in estimates], color=colour, linewidth=1.6, marker="o", markersize=3)
    return line
