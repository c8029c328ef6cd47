"""What drafters save: speed-up and tokens a pass of each method, by batch size, a column of panels a model; and as a table.

A curve is what one run came to:

    batch_sizes                in their order
    speedup/METHOD             at each of them, in multiples of decoding without drafts
    tokens_per_pass/METHOD     at each of them; of methods that count passes
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlcore.report.headline import number
from rlcore.repro.plot import COLOURS

FILE, PICTURE = "bench.jsonl", "bench.svg"  # of a run folder
DRAWN = {"speedup": "speed-up over plain decoding", "tokens_per_pass": "tokens a pass over a row"}
COLUMNS = {
    "tokens_per_second": "tokens/s",
    "speedup": "speed-up",
    "over_engine": "over engine",
    "reduction": "fewer passes",
    "tokens_per_pass": "tokens a pass",
    "accepted": "accepted",
    "draft_forwards": "drafts/pass",
    "draft_share": "drafting",
    "cache_bytes": "cache MiB",
    "exact": "exact",
}
INK = "#0c0c01"
Curve = Mapping[str, Sequence[float]]


def read(folder: Path) -> list[dict[str, Any]]:
    """The measurements of a run, as `rollout.decoding.bench.Measurement` has them."""
    return [json.loads(line) for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]


def curve(measurements: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"batch_sizes": []}
    for each in measurements:
        if each["batch_size"] not in found["batch_sizes"]:
            found["batch_sizes"].append(each["batch_size"])
        for quantity in DRAWN:
            if each[quantity] is not None:
                found.setdefault(f"{quantity}/{each['method']}", []).append(each[quantity])
    return found


def told(measurements: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of a table: a method at a batch size each."""
    width = max(len(each["method"]) for each in measurements)
    yield f"{'batch':>5}  {'method':<{width}}" + "".join(f"{column:>15}" for column in COLUMNS.values())
    for each in measurements:
        known = {**each, "cache_bytes": each["cache_bytes"] and each["cache_bytes"] / 2**20}
        cells = "".join(f"{number(known[name]):>15}" for name in COLUMNS)
        yield f"{each['batch_size']:>5}  {each['method']:<{width}}{cells}"


def picture(models: Mapping[str, Sequence[Curve]], path: Path, salt: str) -> None:
    """`models`: the curves of each, one a seed. Bars are means over seeds; lines reach from the lowest to the highest."""
    import matplotlib
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(name.partition("/")[2] for seeds in models.values() for name in seeds[0] if "/" in name))
    looks = {method: _look(index) for index, method in enumerate(methods)}
    style: Any = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
    style |= {"axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y", "grid.alpha": 0.3}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(max(7, 4.6 * len(models)), 6), layout="constrained")
        places = figure.subplots(2, len(models), squeeze=False)
        for column, (model, seeds) in zip(places.T, models.items(), strict=True):
            for axes, quantity in zip(column, DRAWN, strict=True):
                _bars(axes, seeds, quantity, looks)
            column[0].set_title(model, fontsize=9, loc="left")
            column[1].set(xlabel="batch size")
        for axes, label in zip(places[:, 0], DRAWN.values(), strict=True):
            axes.set(ylabel=label)
        bars: dict[str, Any] = {str(bar.get_label()): bar for axes in figure.axes for bar in axes.containers}
        figure.legend([bars[method] for method in methods], methods, loc="outside right center", fontsize=8, frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _look(index: int) -> dict[str, Any]:
    """The first method is what the others are measured against; from the eighth on the colours come again, hatched."""
    turn, colour = divmod(index - 1, len(COLOURS))
    return {"color": COLOURS[colour] if index else INK, "hatch": "///" if turn > 0 else None, "edgecolor": "white"}


def _bars(axes: Any, seeds: Sequence[Curve], quantity: str, looks: Mapping[str, Mapping[str, Any]]) -> None:
    names = [name for name in seeds[0] if name.startswith(f"{quantity}/")]
    sizes, width = seeds[0]["batch_sizes"], 0.8 / len(names)
    for index, name in enumerate(names):
        values, method = np.array([seed[name] for seed in seeds]), name.partition("/")[2]
        mean = values.mean(0)
        x = np.arange(len(sizes)) + (index - (len(names) - 1) / 2) * width
        spread = np.stack([mean - values.min(0), values.max(0) - mean])
        line = {"elinewidth": 0.8, "ecolor": INK}
        axes.bar(x, mean, width, label=method, yerr=spread, error_kw=line, **looks[method])
    axes.axhline(1, color=INK, linewidth=0.6, linestyle=":")
    axes.set_xticks(np.arange(len(sizes)), [str(size) for size in sizes])
