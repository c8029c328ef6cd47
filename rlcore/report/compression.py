"""Compressed models side by side: what they still predict by their size, and the error of each layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlcore.report.read import read_run
from rlcore.repro.plot import COLOURS, STYLES


def draw(runs: Mapping[str, Path], path: Path) -> None:
    """Run folders of `job: compress` by their labels."""
    curves = {}
    for label, folder in runs.items():
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        error = read_run(folder).metrics.get("error")
        layers = ([], []) if error is None else (error.steps.tolist(), error.values.tolist())
        curves[label] = {"bits": summary["bits_per_weight"] or 16.0, "quality": summary.get("solution"), "layers": layers}
    picture(curves, path, salt=path.stem)


def picture(curves: Mapping[str, Mapping[str, Any]], path: Path, salt: str) -> None:
    """`curves`: of each label `bits` of a weight, `quality` (mean log-prob of a solution's token, or None) and `layers`, the
    numbers of the layers and their errors."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
    with matplotlib.rc_context(style | {"axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        quality, errors = figure.subplots(1, 2)
        for index, (label, curve) in enumerate(curves.items()):
            colour, line = COLOURS[index % len(COLOURS)], STYLES[index // len(COLOURS) % len(STYLES)]
            if curve["quality"] is not None:
                quality.plot(curve["bits"], curve["quality"], "o", color=colour, markersize=5)
                quality.annotate(label, (curve["bits"], curve["quality"]), (4, 3), textcoords="offset points", fontsize=7)
            errors.plot(*curve["layers"], color=colour, linestyle=line, linewidth=1.4, label=label)
        quality.set(xlabel="bits of a compressed weight", ylabel="mean log-prob of a held-out solution's token")
        errors.set(xlabel="layer", ylabel="‖W − Ŵ‖² / ‖W‖²", yscale="log")
        figure.legend(*errors.get_legend_handles_labels(), loc="outside right center", fontsize=7, frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
