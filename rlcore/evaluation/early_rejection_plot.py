"""Accuracy by the tokens that early rejection saves, a line for each cut and a point for each share that is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlcore.evaluation.best_of_n_plot import COLOURS
from rlcore.evaluation.early_rejection import Rejection, Unit


def draw(file: Path, rejections: Sequence[Rejection], unit: Unit, fewer: Mapping[float, float]) -> None:
    """`fewer`: the control, accuracy by the share that is saved where not as many are begun."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(fewer), list(fewer.values()), color="0.55", linestyle=(0, (4, 1.5)), label="fewer solutions are begun")
    for index, after in enumerate(dict.fromkeys(each.after for each in rejections)):
        of = [each for each in rejections if each.after == after]
        y = [each.accuracy for each in of]
        axes.errorbar(
            [each.saved for each in of],
            [e.value for e in y],
            [[e.value - e.low for e in y], [e.high - e.value for e in y]],
            color=COLOURS[index % len(COLOURS)],
            label=f"after {after} {unit} (ρ {of[0].correlation:.2f})",
            marker="o",
            markersize=4,
            linewidth=1.4,
            elinewidth=0.7,
        )
    axes.set(xlabel="share of tokens saved", ylabel="accuracy of the best that is kept", xlim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
