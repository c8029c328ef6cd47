"""What an experiment's runs came to, read from their folders: numbers, curves, claims.

accuracy_before, accuracy_after, …    from summary.json, at the rollout temperature; greedy_… at temperature 0
accuracy_best                         of all evaluations
alarms                                that the hack monitor raised
lost_at_alarm                         how far the evaluated accuracy was below its best when the first alarm was raised, on the
                                      straight line between evaluations; None where none was
samples                               completions sampled for training, ReMax's greedy ones too
tokens                                sampled for training; what the branches of a tree share counts once
wall_s                                seconds of training: start-up and evaluation do not count
samples_to_target, wall_to_target     where the evaluated accuracy first is at the target, on the straight line from the
                                      evaluation before it; None where it never is, and never an average of the other seeds
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlcore.recipe.schema import RL, Recipe
from rlcore.report.read import read_run
from rlcore.repro.expression import Claim
from rlcore.repro.intervals import interval
from rlcore.run import alarms

STAGED = ("accuracy", "greedy_accuracy", "length", "entropy", "truncated", "no_answer")
METRICS = (
    *(f"{quantity}_{stage}" for quantity in STAGED for stage in ("before", "after")),
    *("samples", "tokens", "wall_s", "samples_to_target", "wall_to_target", "accuracy_best", "alarms", "lost_at_alarm"),
)


@dataclass(frozen=True)
class Curve:
    """What had been spent on training at each evaluation, the one before the first step included, and what it found."""

    samples: Sequence[float]
    wall_s: Sequence[float]
    accuracy: Sequence[float]

    def first_at(self, target: float, spent: Sequence[float]) -> float | None:
        """Where the accuracy is first at the target, in what of `spent`. For 0.5, 0.8 at 0, 300 and the target 0.7: 200."""
        reached = [i for i, accuracy in enumerate(self.accuracy) if accuracy >= target]
        if not reached:
            return None
        ends = slice(max(0, reached[0] - 1), reached[0] + 1)
        return float(np.interp(target, self.accuracy[ends], spent[ends]))


@dataclass(frozen=True)
class Result:
    """What one run came to."""

    metrics: Mapping[str, float | None]  # all of METRICS
    curve: Curve
    elapsed_s: float  # of the whole run, start-up and evaluations included


def collect(folder: Path, recipe: Recipe, target: float) -> Result:
    assert isinstance(recipe, RL)  # `rlcore.repro.experiment` plans no others
    run = read_run(folder)
    times, tokens, shared = (_by_step(run.metrics.get(name)) for name in ("time/step", "tokens", "tree/shared"))
    samples = {step: _completions(folder, step) * _greedy_too(recipe) for step in times}
    evaluations = _by_step(run.metrics["eval/accuracy"])
    curve = Curve(
        samples=[sum(n for step, n in samples.items() if step <= at) for at in evaluations],
        wall_s=[sum(s for step, s in times.items() if step <= at) for at in evaluations],
        accuracy=list(evaluations.values()),
    )
    raised = [alarm.step for alarm in alarms.read(folder)]
    found = {
        "samples": sum(samples.values()),
        "tokens": sum(count * (1 - shared.get(step, 0.0)) for step, count in tokens.items()),
        "wall_s": sum(times.values()),
        "samples_to_target": curve.first_at(target, curve.samples),
        "wall_to_target": curve.first_at(target, curve.wall_s),
        "accuracy_best": max(curve.accuracy),
        "alarms": len(raised),
        "lost_at_alarm": _lost(evaluations, min(raised)) if raised else None,
    }
    metrics = {name: found.get(name, run.summary.get(name)) for name in METRICS}
    return Result(metrics, curve, run.summary["wall_s"])


def summarise(values: Mapping[int, float | None]) -> dict[str, Any]:
    """A metric over seeds: its mean, with its t-interval, where every seed has a value; how many have one; and each of them."""
    known = [value for value in values.values() if value is not None]
    low, high = interval(list(values.values())) or (None, None)
    mean = statistics.fmean(known) if len(known) == len(values) else None
    return {"mean": mean, "low": low, "high": high, "seeds": len(known), "per_seed": {str(s): v for s, v in values.items()}}


def judge(claim: Claim, results: Mapping[str, Mapping[int, Result]], seeds: Sequence[int]) -> dict[str, Any]:
    """Whether a claim holds for the results of each arm by seed, its interval, and its left side for each seed."""
    per_seed = {seed: claim.at(lambda metric, arm, seed=seed: results[arm][seed].metrics[metric]) for seed in seeds}  # type: ignore[misc]
    left = list(per_seed.values())
    bounds = interval(left)
    return {
        "holds": claim.holds(left),
        "interval": bounds and list(bounds),
        "per_seed": {str(seed): value for seed, value in per_seed.items()},
    }


def _lost(evaluations: Mapping[int, float], step: int) -> float:
    """For 0.4, 0.6, 0.3 at the steps 0, 5, 10 and step 7: 0.12."""
    now = float(np.interp(step, list(evaluations), list(evaluations.values())))
    return max(now, *(accuracy for at, accuracy in evaluations.items() if at <= step)) - now


def _by_step(series: Any) -> dict[int, float]:
    return {} if series is None else dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def _completions(folder: Path, step: int) -> int:
    """How many completions a step's ledger holds: also those that were not judged, or sampled and not trained on."""
    import pyarrow.parquet as pq

    components = pq.read_table(folder / "ledger" / f"step-{step:06d}.parquet", columns=["component"])["component"]
    return len(components) // len(components.unique())


def _greedy_too(recipe: RL) -> float:
    """A completion more in each group, which the ledger does not hold, where the advantage needs a greedy one."""
    from trainers.algorithm import needing

    return 1 + bool(needing(recipe, "greedy")) / recipe.rollout.samples
