"""Metrics that add up right however a batch was split: they travel as numerator and denominator, or as a maximum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rlcore.errors import UserError


@dataclass(frozen=True, slots=True)
class Mean:
    total: float
    count: float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        return self.total / self.count


@dataclass(frozen=True, slots=True)
class Max:
    value: float

    def __add__(self, other: Max) -> Max:
        return Max(max(self.value, other.value))


Metrics = dict[str, Mean | Max]


def merge(parts: Iterable[Metrics]) -> Metrics:
    """Add up metrics by name."""
    merged: Metrics = {}
    for part in parts:
        for name, metric in part.items():
            merged[name] = merged[name] + metric if name in merged else metric  # type: ignore[operator]
    return merged


def union(parts: Iterable[Metrics]) -> Metrics:
    """The metrics of all parts. Raises UserError where two report one name: added up, neither could be read any more."""
    together: Metrics = {}
    for part in parts:
        if twice := together.keys() & part.keys():
            raise UserError(f"two parts of a step report the metric {min(twice)!r}: give one of them another name")
        together |= part
    return together


def values(metrics: Mapping[str, Mean | Max]) -> dict[str, float]:
    """What is logged. A mean over nothing has no value and is left out: the accuracy where nothing was judged is not 0."""
    return {name: metric.value for name, metric in metrics.items() if isinstance(metric, Max) or metric.count}
