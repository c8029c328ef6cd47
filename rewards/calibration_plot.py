"""The reliability plot: how often what was claimed with a probability is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rewards.calibration import Bin


def draw(file: Path, curves: Mapping[str, Sequence[Bin]]) -> None:
    """A curve of each name, whose points are as large as their bins are full."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="perfect")
    for name, bins in curves.items():
        total = sum(each.count for each in bins)
        [line] = axes.plot([b.claimed for b in bins], [b.right for b in bins], label=name)
        sizes = [10 + 200 * b.count / total for b in bins]
        axes.scatter([b.claimed for b in bins], [b.right for b in bins], s=sizes, color=line.get_color(), alpha=0.6)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="claimed probability of being right", ylabel="share that is right")
    axes.legend(frameon=False)
    figure.savefig(file)
