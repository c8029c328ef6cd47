"""What a run of an experiment came to, whatever kind it is of; its numbers over seeds, and what claims say of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlcore.repro.expression import Claim
from rlcore.repro.intervals import interval


@dataclass(frozen=True)
class Result:
    """What one arm came to with one seed."""

    metrics: Mapping[str, float | None]  # one that is not here has no value
    curve: Mapping[str, Sequence[float]]  # what the panels of the plot ask for
    elapsed_s: float  # of the whole run, start-up and evaluations included


def summarise(values: Mapping[int, float | None]) -> dict[str, Any]:
    """A metric over seeds: its mean, with its t-interval, where every seed has a value; how many have one; and each of them."""
    known = [value for value in values.values() if value is not None]
    low, high = interval(list(values.values())) or (None, None)
    mean = statistics.fmean(known) if len(known) == len(values) else None
    return {"mean": mean, "low": low, "high": high, "seeds": len(known), "per_seed": {str(s): v for s, v in values.items()}}


def judge(claim: Claim, results: Mapping[str, Mapping[int, Result]], seeds: Sequence[int]) -> dict[str, Any]:
    """Whether a claim holds for the results of each arm by seed, its interval, and its left side for each seed."""
    per_seed = {seed: claim.at(lambda metric, arm, seed=seed: results[arm][seed].metrics.get(metric)) for seed in seeds}  # type: ignore[misc]
    left = list(per_seed.values())
    bounds = interval(left)
    return {
        "holds": claim.holds(left),
        "interval": bounds and list(bounds),
        "per_seed": {str(seed): value for seed, value in per_seed.items()},
    }
