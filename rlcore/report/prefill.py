"""What patterns of sparse attention came to, by the length of the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcore.repro.plot import COLOURS

FILE, PICTURE = "measurements.jsonl", "prefill.svg"  # of a run folder
QUANTITIES = {
    "share": "share of blocks computed",
    "seconds": "seconds of the prefill",
    "speedup": "speed-up over dense",
    "attention_speedup": "speed-up of attention",
    "processor_s": "processor seconds",
    "processor_speedup": "speed-up in processor seconds",
    "divergence": "KL to dense, nats a token",
    "answer": "log-prob of a number's token",
    "recalled": "share of numbers recalled",
}
DRAWN = ("share", "speedup", "processor_speedup", "divergence", "answer")
Summary = Mapping[str, Any]  # quantity → pattern → length → value


def told(summary: Summary) -> Iterator[str]:
    """Lines of a table."""
    patterns, lengths = list(summary["share"]), list(next(iter(summary["share"].values())))
    widths = {quantity: max(10, len(quantity) + 2) for quantity in QUANTITIES}
    yield f"{'':<16}{'tokens':>8}" + "".join(f"{quantity:>{width}}" for quantity, width in widths.items())
    for length in lengths:
        for pattern in patterns:
            values = (f"{summary[quantity][pattern][length]:>{width}.3g}" for quantity, width in widths.items())
            yield f"{pattern:<16}{length:>8}" + "".join(values)


def picture(models: Mapping[str, Sequence[Summary]], path: Path, salt: str) -> None:
    """`models`: the summaries of each, one a seed. A row a model; lines are means over seeds, points the seeds."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
    with matplotlib.rc_context(style | {"axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(3.0 * len(DRAWN), 3.2 * len(models) + 0.4), layout="constrained")
        for row, (model, seeds) in zip(figure.subplots(len(models), len(DRAWN), squeeze=False), models.items(), strict=True):
            for axes, quantity in zip(row, DRAWN, strict=True):
                _panel(axes, [seed[quantity] for seed in seeds])
                axes.set(xlabel="tokens of the prompt", ylabel=QUANTITIES[quantity], xscale="log")
                lengths = [int(length) for length in next(iter(seeds[0][quantity].values()))]
                axes.set_xticks(lengths, list(map(str, lengths)), minor=False)
                axes.minorticks_off()
            row[0].set_title(model, fontsize=9, loc="left")
        lines = {str(line.get_label()): line for line in figure.axes[0].get_lines() if line.get_linewidth() > 1}
        figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines), fontsize=8, frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axes: Any, seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> None:
    for index, pattern in enumerate(seeds[0]):
        lengths = [int(length) for length in seeds[0][pattern]]
        rows = [list(seed[pattern].values()) for seed in seeds]
        colour = COLOURS[index % len(COLOURS)]
        means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
        axes.plot(lengths, means, color=colour, linewidth=1.6, label=pattern)
        for row in rows:
            axes.plot(lengths, row, ".", color=colour, markersize=4, linewidth=0)
