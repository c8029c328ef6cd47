"""An experiment's curves, from what `rlcore.repro.page` writes: accuracy by completions and by seconds, a line an arm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLOURS = ("#0b6fb3", "#d1570b", "#148a62", "#b0608f", "#a97b00", "#5b6672")  # the report's, in its order
STYLES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))  # from the seventh arm on the colours come again, in another style
PANELS = {"samples": "completions sampled", "wall_s": "seconds of training"}


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Lines are means over seeds, evaluation by evaluation; bands reach from the lowest seed to the highest. The legend has the
    arms in the order in which they end."""
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": result["name"], "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
    with matplotlib.rc_context(style | {"axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(11, 4), layout="constrained")
        panels = figure.subplots(1, len(PANELS), sharey=True)
        ends = {}
        for index, (arm, seeds) in enumerate(result["curves"].items()):
            evaluations = min(len(curve["accuracy"]) for curve in seeds.values())  # a stop rule may end a seed early
            of = {key: np.array([curve[key][:evaluations] for curve in seeds.values()]) for key in ("accuracy", *PANELS)}
            accuracy, colour = of["accuracy"], COLOURS[index % len(COLOURS)]
            line = dict(color=colour, linestyle=STYLES[index // len(COLOURS) % len(STYLES)], linewidth=1.6)
            for axes, spent in zip(panels, PANELS, strict=True):
                x = of[spent].mean(0)
                axes.fill_between(x, accuracy.min(0), accuracy.max(0), color=colour, alpha=0.1, linewidth=0)
                [ends[arm]] = axes.plot(x, accuracy.mean(0), **line)
        for axes, label in zip(panels, PANELS.values(), strict=True):
            axes.axhline(result["target"], color="#0c0c01", linewidth=0.6, linestyle=":")
            axes.set(xlabel=label, xlim=(0, None))
        panels[0].set(ylabel="held-out accuracy")
        panels[0].set_title("lines: mean over seeds; bands: lowest to highest seed", fontsize=8, loc="left")
        best_first = sorted(ends, key=lambda arm: -ends[arm].get_ydata()[-1])
        figure.legend([ends[arm] for arm in best_first], best_first, loc="outside right center", fontsize=8, frameon=False)
        figure.savefig(path, metadata={"Date": None})
