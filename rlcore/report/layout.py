"""Which metric is drawn where: sections of panels, by name. What no section knows comes last, under "Other".

Read by `rlcore.report.page`; the panels are drawn by `rlcore.report.figures`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from rlcore.report.read import Series


@dataclass(frozen=True)
class Panel:
    """One plot: a line for each metric; or, where a `whole` is named, the metrics stacked, and the whole as a line."""

    title: str
    names: Sequence[str]
    whole: str = ""

    @property
    def parts(self) -> list[str]:
        return [name for name in self.names if name != self.whole]


@dataclass(frozen=True)
class Section:
    title: str
    panels: Sequence[Panel]
    columns: int  # on a wide screen
    constant: Sequence[str]  # metrics that never changed: told, not drawn


@dataclass(frozen=True)
class _Together:
    """All metrics that match, in one panel."""

    title: str
    patterns: tuple[str, ...]
    whole: str = ""

    def panels(self, names: Sequence[str]) -> list[Panel]:
        return [Panel(self.title, names, self.whole)]


@dataclass(frozen=True)
class _Each:
    """A panel for each metric that matches."""

    patterns: tuple[str, ...]

    def panels(self, names: Sequence[str]) -> list[Panel]:
        return [Panel(name, [name]) for name in names]


MONITOR = "Monitor"
SECTIONS: Mapping[str, Sequence[_Together | _Each]] = {
    "Accuracy": [
        _Together("evaluation", ("eval/accuracy", "eval/pass@*", "eval/maj@*")),
        _Together("held out", ("validation/accuracy",)),
        _Together("training", ("accuracy",)),
    ],
    "Rewards": [
        _Each(("reward", "reward/*", "margin")),
        _Each(("validation/reward/*", "validation/margin")),
    ],
    "Latent codes": [_Each(("validation/codes/*", "prior_entropy", "posterior_entropy"))],
    MONITOR: [_Each(("monitor/*",))],
    "Completions": [
        _Together("tokens per completion", ("length/mean", "eval/length")),
        _Together("share of completions", ("length/truncated", "answers/missing", "invalid/fraction")),
        _Together("share of completions, evaluation", ("eval/truncated", "eval/no_answer", "eval/invalid")),
        _Each(("groups/*",)),
    ],
    "Entropy and KL": [_Together("entropy", ("entropy", "eval/entropy")), _Each(("kl", "kl/*"))],
    "Sensitivity": [
        _Together("KL to the dense model, by the number of the strength", ("divergence/*",)),
        _Together("each layer alone, by its number", ("layer_divergence/*",)),
        _Each(("strength",)),
    ],
    "Heads": [
        _Together("tokens a pass, one guess a step", ("heads/tokens_per_pass/*",)),
        *(_Together(f"KL {i} tokens ahead", (f"heads/kl_{i}/*",)) for i in range(1, 9)),
        _Each(("heads/*",)),
    ],
    "Decoding": [
        _Together("speed-up over plain decoding, by the number of the batch size", ("speedup/*",)),
        _Together("plain decoding's passes, in multiples of those for the same tokens", ("reduction/*",)),
        _Together("tokens a pass over a row", ("tokens_per_pass/*",)),
        _Together("tokens per second", ("tokens_per_second/*",)),
        _Together("share of completions that are plain decoding's", ("exact/*",)),
        _Each(("batch_size",)),
    ],
    "Update": [_Each(("loss", "clip_fraction", "grad_norm", "ratio/*", "importance/*", "learning_rate"))],
    "Critic": [_Each(("critic/*",))],
    "Sampling": [_Each(("staleness/*", "tree/*", "curriculum/*", "replay/*", "budget/*", "drafter/*"))],
    "Compressed rollouts": [_Each(("compression/*", "sync/*"))],
    "Time": [_Together("seconds per step", ("time/*",), whole="time/step"), _Each(("tokens_per_second", "tokens"))],
    "Other": [_Each(("*",))],
}
WIDE = {"Accuracy"}  # what a run is about


def sections(metrics: Mapping[str, Series]) -> list[Section]:
    """Every metric in exactly one panel; bounds are drawn as the band of the metric that they bound. A panel in which nothing
    ever changes is not drawn: its metrics are among the section's constant ones."""
    left = [name for name in metrics if not _is_bound(name, metrics)]
    found = []
    for title, rules in SECTIONS.items():
        panels: list[Panel] = []
        for rule in rules:
            names = _matching(left, rule.patterns)
            left = [name for name in left if name not in names]
            panels += rule.panels(names) if names else []
        if panels:
            drawn = [panel for panel in panels if not all(_is_constant(name, metrics) for name in panel.names)]
            constant = [name for panel in panels if panel not in drawn for name in panel.names]
            found.append(Section(title, drawn, columns=2 if title in WIDE else 3, constant=constant))
    return found


def bounds(name: str, metrics: Mapping[str, Series]) -> tuple[Series, Series] | None:
    """The interval of a metric, where the run recorded one."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return (low, high) if low and high else None


def _is_bound(name: str, metrics: Mapping[str, Series]) -> bool:
    whole = name.removesuffix("_low").removesuffix("_high")
    return whole != name and whole in metrics and bounds(whole, metrics) is not None


def _is_constant(name: str, metrics: Mapping[str, Series]) -> bool:
    """The same value at every step, of which there are several, and without an interval that a panel would show."""
    values = metrics[name].values
    return len(values) > 1 and bool(np.all(values == values[0])) and bounds(name, metrics) is None


def _matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """In the order of the patterns; a name spelled out is not caught by a pattern before it."""
    exact = {pattern for pattern in patterns if "*" not in pattern}
    names = list(names)
    return [n for p in patterns for n in names if (n == p if p in exact else n not in exact and fnmatchcase(n, p))]
