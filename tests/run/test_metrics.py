"""Metrics add up however a batch was split, and a mean over nothing is not logged as 0."""

from __future__ import annotations

from rlcore.run.metrics import Max, Mean, Metrics, values


def test_a_mean_over_nothing_has_no_value() -> None:
    metrics: Metrics = {"accuracy": Mean(0.0, 0), "groups/dropped": Mean(0, 1), "ratio/max": Max(0.0)}
    assert values(metrics) == {"groups/dropped": 0.0, "ratio/max": 0.0}
