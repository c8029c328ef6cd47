"""What changes of equal norm cost models: KL to the dense model by the norm of the change, a panel a model; and by the layer
that is changed alone.

A curve is what one run came to:

    strengths             relative norms, rising
    kl/KIND               KL at each of them
    layer/KIND            KL of each layer alone, from the bottom up
    quantiser/LABEL       the relative norm that its change comes to, and its KL
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlcore.repro.plot import COLOURS

FILE, PICTURE = "measurements.jsonl", "sensitivity.svg"  # of a run folder
MARKERS, INK = "osD^vP*X", "#0c0c01"
Curve = Mapping[str, Sequence[float]]


def read(folder: Path) -> list[dict[str, Any]]:
    """The measurements of a run, as `compress.sensitivity.Measurement` has them."""
    return [json.loads(line) for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]


def curve(measurements: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"strengths": []}
    for each in measurements:
        if each["layer"] is not None:
            found.setdefault(f"layer/{each['of']}", []).append(each["divergence"])
        elif each["strength"] is not None:
            found.setdefault(f"kl/{each['of']}", []).append(each["divergence"])
            found["strengths"] = sorted({*found["strengths"], each["strength"]})
        elif (norm := each["norm"] or each["input_norm"]) is not None:
            found[f"quantiser/{each['of']}"] = [norm, each["divergence"]]
    return found


def told(measurements: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of a table: the KL of each kind by strength, and of each quantiser by the norm that its change comes to."""
    found = curve(measurements)
    yield f"{'':<20}" + "".join(f"{strength:>10g}" for strength in found["strengths"])
    for name in _of("kl", [found]):
        yield f"{name.partition('/')[2]:<20}" + "".join(f"{kl:>10.3g}" for kl in found[name])
    for name in _of("quantiser", [found]):
        norm, kl = found[name]
        yield f"{name.partition('/')[2]:<20}{kl:>10.3g} at {norm:.3g}"


def picture(models: Mapping[str, Sequence[Curve]], path: Path, salt: str) -> None:
    """`models`: the curves of each, one a seed. Lines are means over seeds, bands reach from the lowest to the highest."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(name.partition("/")[2] for seeds in models.values() for name in _of("kl", seeds)))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    panels = [(model, seeds, part) for model, seeds in models.items() for part in ("kl", "layer") if _of(part, seeds)]
    style: Any = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
    with matplotlib.rc_context(style | {"axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(max(7, 4.6 * len(panels)), 4.4), layout="constrained")
        for axes, (model, seeds, part) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for name in _of(part, seeds):
                _line(axes, seeds, name, colours.get(name.partition("/")[2], INK))
            if part == "kl":
                _points(axes, seeds)
                axes.set(xscale="log", xlabel="relative norm of the change", ylabel="KL to the dense model, nats a token")
            else:
                axes.set(xlabel="layer that is changed alone", ylabel="KL to the dense model, nats a token")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_yscale("log")
            axes.set_title(model, fontsize=9, loc="left")
        lines = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
        figure.legend(list(lines.values()), list(lines), loc="outside right center", fontsize=8, frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _of(part: str, seeds: Sequence[Curve]) -> list[str]:
    return [name for name in seeds[0] if name.startswith(f"{part}/")]


def _line(axes: Any, seeds: Sequence[Curve], name: str, colour: str) -> None:
    values = np.array([seed[name] for seed in seeds])
    x = seeds[0]["strengths"] if name.startswith("kl/") else np.arange(1, values.shape[1] + 1)
    axes.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
    axes.plot(x, values.mean(0), color=colour, linewidth=1.5, marker=".", markersize=4, label=name.partition("/")[2])


def _points(axes: Any, seeds: Sequence[Curve]) -> None:
    for index, name in enumerate(_of("quantiser", seeds)):
        norm, kl = np.array([seed[name] for seed in seeds]).mean(0)
        marker, hollow = MARKERS[index % len(MARKERS)], index // len(MARKERS) % 2 == 1
        filled = "none" if hollow else INK
        axes.plot(norm, kl, marker, color=INK, markerfacecolor=filled, markersize=5, label=name.partition("/")[2])
