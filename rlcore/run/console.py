"""What a person sees while a run goes on: a progress bar with the step's numbers on a terminal, a line per step elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

# What a step's line shows, in this order, and what it is called there.
ALWAYS = {
    "reward": "reward",
    "accuracy": "accuracy",
    "length/mean": "length",
    "entropy": "entropy",
    "groups/mixed": "mixed",
    "kl/reference": "KL",
    "grad_norm": "grad",
    "loss": "loss",
    "error": "error of the weights",
    "strength": "strength",
    "batch_size": "speed-up at batch size",
    "staleness/mean": "staleness",
    "drafter/accepted": "drafts accepted",
    "drafter/tokens_per_pass": "tok/pass",
    "nodes_per_second": "nodes/s",
    "tokens_per_second": "tok/s",
}
COMPRESSED = {  # where a compressed copy of the policy samples
    "kl/rollout_k3": "KL to the copy",
    "compression/bytes_saved": "bytes saved",
    "compression/seconds_saved": "s saved",
}
OF_EACH = ("divergence/", "layer_divergence/", "speedup/")  # by what comes after it
UNLESS_ZERO = {  # troubles: shown when there are any
    "length/truncated": "truncated",
    "answers/missing": "no answer",
    "invalid/fraction": "invalid",
    "groups/dropped": "dropped groups",
    "groups/degenerate": "degenerate",
    "clip_fraction": "clipped",
    "importance/capped": "capped",
}

TERMINAL = RichConsole(stderr=True, highlight=False, soft_wrap=True)  # one: it stacks the bars that are shown at a time


def say(message: str) -> None:
    TERMINAL.print(message, markup=False)


def warn(message: str) -> None:
    TERMINAL.print(f"warning: {message}", style="yellow", markup=False)


def alarm(message: str) -> None:
    TERMINAL.print(f"ALARM: {message}", style="bold red", markup=False)


class Console:
    """`unit`: what there is a `total` of, and a line for each."""

    def __init__(self, name: str, total: int, unit: str = "step") -> None:
        self.progress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=TERMINAL,
            disable=not sys.stderr.isatty(),
        )
        self.task = self.progress.add_task(name, total=total)
        self.total, self.unit = total, unit

    def start(self, done: int) -> None:
        self.progress.update(self.task, completed=done)
        self.progress.start()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.progress.update(self.task, completed=step)
        say(f"{self.unit} {step}/{self.total}  {readable(metrics)}")

    def follow(self, step: int, metrics: Mapping[str, float]) -> None:
        """Like `step`, for work that is not the job itself: only the bar on a terminal, a tenth of the lines elsewhere."""
        self.progress.update(self.task, completed=step)
        if self.progress.disable and step * 10 // self.total > (step - max(1, self.total // 50)) * 10 // self.total:
            say(f"{self.unit} {step}/{self.total}  {readable(metrics)}")

    def stop(self) -> None:
        self.progress.stop()


@contextmanager
def watched(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal while something long goes on; tell the function that it yields how much more is done."""
    with RichProgress(console=TERMINAL, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)


def readable(metrics: Mapping[str, float]) -> str:
    """The numbers people watch, on one line: of a step (its reward components too), or of an evaluation or validation."""
    evaluation = {name.removeprefix("eval/"): value for name, value in metrics.items() if name.startswith("eval/")}
    if evaluation:
        return "evaluation  " + "  ".join(_of_evaluation(evaluation))
    validation = {name.removeprefix("validation/"): value for name, value in metrics.items() if name.startswith("validation/")}
    if validation:
        return "validation  " + "  ".join(f"{name} {_short(value)}" for name, value in validation.items())
    components = {name: name.removeprefix("reward/") for name in metrics if name.startswith("reward/")}
    if len(components) == 1:
        components = {}  # the reward itself
    each = {name: name.rpartition("/")[2] for name in metrics if name.startswith(OF_EACH)}
    copied = COMPRESSED if metrics.get("compression/on") else {}
    names = {"reward": "reward", **components, **ALWAYS, **copied, **each}
    shown = [f"{label} {_short(metrics[name])}" for name, label in names.items() if name in metrics]
    return "  ".join(shown + [f"{label} {_short(metrics[name])}" for name, label in UNLESS_ZERO.items() if metrics.get(name)])


def _of_evaluation(metrics: Mapping[str, float]) -> Iterator[str]:
    for name, value in metrics.items():
        if f"{name}_low" in metrics:
            yield f"{name} {value:.1%} ({metrics[name + '_low']:.1%} to {metrics[name + '_high']:.1%})"
        elif name in ("length", "entropy", "problems_fully_judged") or (
            name in ("truncated", "no_answer", "invalid") and value
        ):
            yield f"{name.replace('_', ' ')} {_short(value)}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
