"""What comes of arms that train a policy (`job: rl`), read from their run folders.

accuracy_before, accuracy_after, …    from summary.json, at the rollout temperature; greedy_… at temperature 0
accuracy_best                         of all evaluations
accuracy_sampled, length_sampled      of the completions sampled for training, over all steps alike: step-averaged
accuracy_sampled_early                … over the first fifth of the steps
steps_after                           of a completion, as the hack monitor counts them: mean of the last five training steps
sync_bytes                            of weights that an engine is sent after a step: mean over steps, as all that follow
kl_rollout                            KL of what sampled to the learner, nats a token (k3)
capped                                share of tokens whose importance weight was out of bounds
generate_s, learn_s, sync_s           seconds of a step
generate_again_s                      seconds of generation of a step whose problems all came before: from the second epoch on
tokens_per_pass                       that a pass of the policy over a completion's drafts brought; None without a drafter
fingerprint                           a number of 32 bits made of all completions sampled for training, and of what they were
                                      worth: two runs that sampled the same have the same one
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

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from rlcore.recipe.schema import RL, Recipe
from rlcore.report.headline import number
from rlcore.report.read import Run, read_run
from rlcore.repro.plot import Panel, described, plot
from rlcore.repro.results import Result
from rlcore.repro.tables import cell
from rlcore.run import alarms

STAGED = ("accuracy", "greedy_accuracy", "length", "entropy", "truncated", "no_answer")
METRICS = (
    *(f"{quantity}_{stage}" for quantity in STAGED for stage in ("before", "after")),
    *(
        "samples",
        "tokens",
        "wall_s",
        "samples_to_target",
        "wall_to_target",
        "accuracy_best",
        "accuracy_sampled",
        "accuracy_sampled_early",
        "length_sampled",
        "steps_after",
        "sync_bytes",
        "kl_rollout",
        "capped",
        "generate_s",
        "learn_s",
        "sync_s",
        "generate_again_s",
        "tokens_per_pass",
        "fingerprint",
        "alarms",
        "lost_at_alarm",
    ),
)


OVER_STEPS = {  # metrics of a run, by what their means over steps are called here
    "sync_bytes": "sync/bytes",
    "kl_rollout": "kl/rollout_k3",
    "capped": "importance/capped",
    "generate_s": "time/generate",
    "learn_s": "time/learn",
    "sync_s": "time/sync",
    "tokens_per_pass": "drafter/tokens_per_pass",
}
SYNCED = ("sync_bytes", "kl_rollout", "capped", "generate_s", "learn_s", "sync_s")  # told of arms that sync in different ways
DRAFTED = ("tokens_per_pass", "generate_again_s")  # told where an arm has a drafter
LAST = 5  # training steps that `steps_after` is the mean of
EARLY = 5  # that share of the steps is early
COLUMNS = {  # of the table of arms
    "accuracy_before": "accuracy before",
    "accuracy_after": "after",
    "accuracy_best": "best",
    "accuracy_sampled": "over all steps",
    "accuracy_sampled_early": "over the first fifth",
    "length_after": "tokens a completion",
    "length_sampled": "over all steps",
    "steps_after": "steps a completion",
    "samples": "completions",
    "tokens": "tokens",
    "wall_s": "seconds",
    "samples_to_target": "completions to target",
    "wall_to_target": "seconds to target",
    "sync_bytes": "bytes a sync",
    "kl_rollout": "KL to the learner",
    "capped": "weights out of bounds",
    "generate_s": "seconds of generation a step",
    "learn_s": "of learning",
    "sync_s": "of the sync",
    "tokens_per_pass": "tokens a pass",
    "generate_again_s": "seconds of generation a step, from the second epoch on",
    "alarms": "alarms",
    "lost_at_alarm": "accuracy lost at the first",
}
RANKED_BY = "accuracy after training"
HIGHER_IS_BETTER = True
PANELS = {
    "samples": Panel("samples", "accuracy", "completions sampled", "held-out accuracy"),
    "wall_s": Panel("wall_s", "accuracy", "seconds of training", "held-out accuracy"),
    "accuracy": Panel("step", "accuracy_sampled", "training step", "accuracy of the completions sampled"),
    "length": Panel("step", "length_sampled", "training step", "tokens a completion"),
    "generate": Panel("step", "generate_s", "training step", "seconds of generation"),
    "drafts": Panel("step", "tokens_per_pass", "training step", "tokens a pass over a completion"),
}
SHOWN = ("samples", "wall_s")  # where an experiment names no others


def collect(folder: Path, recipe: Recipe, target: float) -> Result:
    assert isinstance(recipe, RL)  # `rlcore.repro.experiment` plans no others for it
    run = read_run(folder)
    times, sampling, tokens, shared = (
        _by_step(run.metrics.get(name)) for name in ("time/step", "time/generate", "tokens", "tree/shared")
    )
    samples = {step: _completions(folder, step) * _greedy_too(recipe) for step in times}
    evaluations = _by_step(run.metrics["eval/accuracy"])
    accuracy = list(evaluations.values())
    sampled = _sampled(run)
    curve = {  # what had been spent on training at each evaluation, the one before the first step included, and what it found
        "samples": [sum(n for step, n in samples.items() if step <= at) for at in evaluations],
        "wall_s": [sum(s for step, s in times.items() if step <= at) for at in evaluations],
        "accuracy": accuracy,
        **sampled,
    }
    written = list(_by_step(run.metrics.get("monitor/steps")).values())
    raised = [alarm.step for alarm in alarms.read(folder)]
    found = {
        "samples": sum(samples.values()),
        "tokens": sum(count * (1 - shared.get(step, 0.0)) for step, count in tokens.items()),
        "wall_s": sum(times.values()),
        "samples_to_target": first_at(target, accuracy, curve["samples"]),
        "wall_to_target": first_at(target, accuracy, curve["wall_s"]),
        "accuracy_best": max(accuracy),
        "accuracy_sampled": _mean(sampled["accuracy_sampled"]),
        "accuracy_sampled_early": _mean(sampled["accuracy_sampled"][: -(-len(sampled["step"]) // EARLY)]),
        "length_sampled": _mean(sampled["length_sampled"]),
        "steps_after": _mean(written[-LAST:]),
        **{name: _mean(list(_by_step(run.metrics.get(of)).values())) for name, of in OVER_STEPS.items()},
        "generate_again_s": _mean([sampling[step] for step in _again(folder, times)]),
        "fingerprint": _fingerprint(folder, times),
        "alarms": len(raised),
        "lost_at_alarm": _lost(evaluations, min(raised)) if raised else None,
    }
    metrics = {name: found.get(name, run.summary.get(name)) for name in METRICS}
    return Result(metrics, curve, run.summary["wall_s"])


def draw(result: Mapping[str, Any], path: Path) -> None:
    plot(result, _shown(result), path)


def picture(result: Mapping[str, Any]) -> str:
    return described(_shown(result))


def headline(result: Mapping[str, Any]) -> str:
    """The metric by which arms are ranked."""
    return "accuracy_after"


def table(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    """Head and rows of the table of arms, without the metrics that no arm has."""
    arms = result["arms"]
    measured = set.intersection(*(set(values) for values in arms.values()))  # a result may be older than a metric
    sent = {values["sync_bytes"]["mean"] for values in arms.values()} if "sync_bytes" in measured else set()
    drafted = any(values["tokens_per_pass"]["seeds"] for values in arms.values()) if "tokens_per_pass" in measured else False
    untold = {*(SYNCED if len(sent) < 2 else ()), *(DRAFTED if not drafted else ())}  # in which arms do not differ
    told = [metric for metric in COLUMNS if metric not in untold]
    shown = [metric for metric in told if metric in measured and any(values[metric]["seeds"] for values in arms.values())]
    rows = ([arm, *(cell(values[metric], len(result["seeds"])) for metric in shown)] for arm, values in arms.items())
    return ["arm", *(COLUMNS[metric] for metric in shown)], rows


def note(result: Mapping[str, Any]) -> str:
    return f"The target is an accuracy of {number(result['target'])}."


def first_at(target: float, accuracy: Sequence[float], spent: Sequence[float]) -> float | None:
    """Where the accuracy is first at the target, in what of `spent`. For 0.5, 0.8 at 0, 300 and the target 0.7: 200."""
    reached = [i for i, value in enumerate(accuracy) if value >= target]
    if not reached:
        return None
    ends = slice(max(0, reached[0] - 1), reached[0] + 1)
    return float(np.interp(target, accuracy[ends], spent[ends]))


def _shown(result: Mapping[str, Any]) -> list[Panel]:
    return [PANELS[name] for name in result.get("panels") or SHOWN]  # a result may be older than `panels`


def _lost(evaluations: Mapping[int, float], step: int) -> float:
    """For 0.4, 0.6, 0.3 at the steps 0, 5, 10 and step 7: 0.12."""
    now = float(np.interp(step, list(evaluations), list(evaluations.values())))
    return max(now, *(accuracy for at, accuracy in evaluations.items() if at <= step)) - now


def _sampled(run: Run) -> dict[str, Sequence[float]]:
    """What was sampled in each training step of which something could be judged."""
    accuracy, length = (_by_step(run.metrics.get(name)) for name in ("accuracy", "length/mean"))
    steps = [step for step in accuracy if step in length]
    beside = {"generate_s": "time/generate", "tokens_per_pass": "drafter/tokens_per_pass"}
    found = {name: _by_step(run.metrics.get(of)) for name, of in beside.items() if of in run.metrics}
    return {
        "step": steps,
        "accuracy_sampled": [accuracy[step] for step in steps],
        "length_sampled": [length[step] for step in steps],
        **{name: [series[step] for step in steps] for name, series in found.items()},
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _by_step(series: Any) -> dict[int, float]:
    return {} if series is None else dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def _completions(folder: Path, step: int) -> int:
    """How many completions a step's ledger holds: also those that were not judged, or sampled and not trained on."""
    components = _ledger(folder, step, "component")["component"]
    return len(components) // len(components.unique())


def _again(folder: Path, steps: Iterable[int]) -> Iterator[int]:
    """The steps whose problems had all come in earlier steps."""
    seen: set[str] = set()
    for step in steps:
        problems = set(_ledger(folder, step, "problem_id")["problem_id"].to_pylist())
        if problems <= seen:
            yield step
        seen |= problems


def _fingerprint(folder: Path, steps: Iterable[int]) -> int:
    made = hashlib.sha256()
    for step in steps:
        rows = _ledger(folder, step, "problem_id", "sample", "completion", "length", "component", "value")
        made.update(json.dumps(rows.to_pylist()).encode())
    return int.from_bytes(made.digest()[:4], "big")


def _ledger(folder: Path, step: int, *columns: str) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(folder / "ledger" / f"step-{step:06d}.parquet", columns=list(columns))


def _greedy_too(recipe: RL) -> float:
    """A completion more in each group, which the ledger does not hold, where the advantage needs a greedy one."""
    from trainers.algorithm import needing

    return 1 + bool(needing(recipe, "greedy")) / recipe.rollout.samples
