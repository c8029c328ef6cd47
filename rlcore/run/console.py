"""What a person sees while a run goes on: a progress bar with the step's numbers on a terminal, a line per step elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

HIDDEN = ("time/", "tokens", "learning_rate", "kl/rollout_max", "ratio/max", "parity", "groups/dropped", "loss")
NAMES = {"length/mean": "length", "length/truncated": "truncated", "tokens_per_second": "tok/s", "kl/reference": "KL"}


class Console:
    def __init__(self, name: str, total: int) -> None:
        self.rich = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self.progress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.rich,
            disable=not sys.stderr.isatty(),
        )
        self.task = self.progress.add_task(name, total=total)
        self.total = total

    def start(self, done: int) -> None:
        self.progress.update(self.task, completed=done)
        self.progress.start()

    def follow(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.follow(step)
        self.say(f"step {step}/{self.total}  {readable(metrics)}")

    def say(self, message: str) -> None:
        self.rich.print(message, markup=False)

    def warn(self, message: str) -> None:
        self.rich.print(f"warning: {message}", style="yellow", markup=False)

    def stop(self) -> None:
        self.progress.stop()


@contextmanager
def watched(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal while something long goes on; tell the function that it yields how much more is done."""
    with RichProgress(console=RichConsole(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)


def readable(metrics: Mapping[str, float]) -> str:
    """The numbers people watch, short: rewards, accuracy, length, KL, entropy, tokens/s; zeros of rare troubles left out."""
    shown = []
    for name, value in metrics.items():
        rare = name in ("length/truncated", "invalid/fraction", "answers/missing", "groups/degenerate", "clip_fraction")
        if (name.startswith(HIDDEN) and name != "tokens_per_second") or (rare and value == 0):
            continue
        digits = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
        shown.append(f"{NAMES.get(name, name)} {digits}")
    return "  ".join(shown)
