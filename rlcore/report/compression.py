"""Compressed models side by side: what they still predict by their size, and the error of each layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlcore.report.read import read_run
from rlcore.repro.plot import COLOURS, STYLES

MARKERS = ("o", "s", "^", "D")  # with each turn of the colours another


def draw(runs: Mapping[str, Path], path: Path) -> None:
    """Run folders of `job: compress` by their labels."""
    curves = {}
    for label, folder in runs.items():
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        curves[label] = {"bits": summary["bits_per_weight"], "quality": summary.get("solution"), "layers": layers(folder)}
    picture(curves, path, salt=path.stem)


def layers(folder: Path) -> tuple[list[int], list[float]]:
    """The numbers of the layers and their errors; none of another architecture, whose layers are not those of the dense
    model."""
    error = read_run(folder).metrics.get("error")
    return ([], []) if error is None else (error.steps.tolist(), error.values.tolist())


def picture(curves: Mapping[str, Mapping[str, Any]], path: Path, salt: str) -> None:
    """`curves`: of each label `bits` of a weight, `quality` (mean log-prob of a solution's token, or None; drawn with its sign
    turned) and `layers`, the numbers of the layers and their errors."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
    with matplotlib.rc_context(style | {"axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        quality, errors = figure.subplots(1, 2)
        lines = []
        for index, curve in enumerate(curves.values()):
            again = index // len(COLOURS)
            style = dict(color=COLOURS[index % len(COLOURS)], marker=MARKERS[again % len(MARKERS)], markersize=4)
            if curve["quality"] is not None:
                quality.plot(curve["bits"], -curve["quality"], **style | {"markersize": 6})
            lines += errors.plot(*curve["layers"], **style, linestyle=STYLES[again % len(STYLES)], linewidth=1.2, markevery=5)
        quality.set(xlabel="bits of a compressed weight", ylabel="nats a token of held-out solutions", yscale="log")
        quality.set_xscale("log", base=2)  # as sizes are told apart, from one bit to 32
        quality.xaxis.set_major_formatter("{x:g}")
        errors.set(xlabel="layer", ylabel="‖W − Ŵ‖² / ‖W‖²", yscale="log")
        figure.legend(lines, list(curves), loc="outside right center", fontsize=7, frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
