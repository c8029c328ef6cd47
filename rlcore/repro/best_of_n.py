"""What comes of arms that train a reward model (`job: reward_model`): what its choice among N samples is worth to one policy.

whole_N        accuracy of the best of N whole solutions; whole_1 is that of the policy
stepwise_N     … of greedy choice among N candidates for each next step; a model of whole solutions has none
auc, gain      on the arm's own validation set, by which its checkpoint was chosen; what is not trained has none

All reward models of a seed are measured by one `rlcore reward best-of-n`, with that seed, and so choose among the same samples.
Beside them stand the experiment's controls, and what takes no reward model: `pass` knows the answers, `majority` counts them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcore.repro.experiment import BestOfN, Planned, Task
from rlcore.repro.plot import Panel, described, plot
from rlcore.repro.results import Result
from rlcore.repro.tables import cell

METHODS = {"whole": "of whole solutions", "stepwise": "step by step"}
PANELS = (
    Panel("n", "whole", "N whole solutions", "held-out accuracy", doubling=True),
    Panel("n", "stepwise", "N candidates for each step", "held-out accuracy", doubling=True),
)
RANKED_BY = "accuracy at the largest N, chosen step by step if any is"
HIGHER_IS_BETTER = True


def measurement(name: str, asked: BestOfN, seed: int, runs: Iterable[Planned]) -> Task:
    """Of the reward models of a seed, and the controls."""
    judges: dict[str, Any] = {run.name: str(run.folder) for run in runs} | asked.controls
    folder = Path("runs", "repro", name, "best_of_n", str(seed))
    options = {
        "policy": asked.policy,
        "data": json.dumps(asked.data),
        "n": ",".join(map(str, asked.n)),
        "aggregate": asked.aggregate,
        "separator": asked.separator,
        "max-new-tokens": str(asked.max_new_tokens),
        "seed": str(seed),
        "json": str(_file(folder)),
    }
    command = [word for key, value in options.items() for word in (f"--{key}", value)]
    command += [word for judge, spec in judges.items() for word in ("--judge", f"{judge}={json.dumps(spec)}")]
    return Task(f"best of N, seed {seed}", folder, ("reward", "best-of-n", *command))


def collect(asked: BestOfN, measured: Task, runs: Iterable[Planned]) -> dict[str, Result]:
    """By arm, of one seed."""
    found = json.loads(_file(measured.folder).read_text(encoding="utf-8"))
    summaries = {run.name: json.loads((run.folder / "summary.json").read_text(encoding="utf-8")) for run in runs}
    curves = {**found["judges"], "pass": {"whole": found["pass"]}, "majority": {"whole": found["majority"]}}
    return {arm: _result(asked, curve, summaries.get(arm, {})) for arm, curve in curves.items()}


def _result(asked: BestOfN, curves: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]) -> Result:
    values = {method: [curve[str(n)]["value"] for n in asked.n] for method, curve in curves.items()}
    metrics = {f"{method}_{n}": value for method, row in values.items() for n, value in zip(asked.n, row, strict=True)}
    metrics |= {name: summary[f"validation_{name}"] for name in ("auc", "gain") if summary}
    known = {name: metrics.get(name) for name in asked.metrics}
    return Result(known, {"n": asked.n, **values}, summary.get("wall_s", 0.0))


def _file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


# -- on the page -----------------------------------------------------------------------------------------------------------


def draw(result: Mapping[str, Any], path: Path) -> None:
    plot(result, PANELS, path)


def picture(result: Mapping[str, Any]) -> str:
    return described(PANELS)


def headline(result: Mapping[str, Any]) -> str:
    """The metric by which arms are ranked: whole solutions where no arm chooses step by step."""
    most = max(_counts(result))
    stepwise = any(values[f"stepwise_{most}"]["seeds"] for values in result["arms"].values())
    return f"{'stepwise' if stepwise else 'whole'}_{most}"


def table(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    """Head and rows of the table of arms, a row for each way to choose."""
    counts, seeds = _counts(result), len(result["seeds"])
    rows = (
        [f"{arm}, {told}", *(cell(values[f"{method}_{n}"], seeds) for n in counts), cell(values["auc"], seeds)]
        for method, told in METHODS.items()
        for arm, values in result["arms"].items()
        if values[f"{method}_{counts[0]}"]["seeds"]
    )
    return ["accuracy", *(f"N = {n}" for n in counts), "AUC on its validation set"], rows


def note(result: Mapping[str, Any]) -> str:
    return "`pass` is the share of problems of which any of N is right, `majority` what the most frequent answer of N is worth."


def _counts(result: Mapping[str, Any]) -> list[int]:
    return [int(metric.removeprefix("whole_")) for metric in result["arms"]["pass"] if metric.startswith("whole_")]
