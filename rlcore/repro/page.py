"""docs/results: NAME.json and NAME.svg of one experiment, and results.md, rendered from every JSON file that lies there; other
pages of docs can quote an experiment."""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlcore import __version__
from rlcore.errors import UserError
from rlcore.report.headline import duration
from rlcore.repro import best_of_n, compression, decoding, evaluations, preferences, sensitivity, supervised, training
from rlcore.repro.experiment import Experiment
from rlcore.repro.intervals import interval
from rlcore.repro.results import Result, judge, summarise
from rlcore.repro.tables import reaching, table
from rlcore.run.folder import write_aside

DOCS = Path("docs")
KINDS: dict[str, Any] = {
    "training": training,
    "best_of_n": best_of_n,
    "preferences": preferences,
    "compression": compression,
    "sensitivity": sensitivity,
    "decoding": decoding,
    "supervised": supervised,
    "evaluations": evaluations,
}
PREFACE = """# Results

Written by `rlcore repro NAME` from `docs/results/*.json`; do not edit.

The unit is the seed: the arms of an experiment share seeds, problems and the model that they start from. Intervals are
t-intervals, 95 %, over seeds: of few seeds they are wide, and may reach beyond what is possible; the noise of evaluating on
some hundred problems, which the arms of a seed share, is not in them. A claim holds where the interval of its left side lies
wholly on the claimed side of the number, *no* where it lies on the other side; otherwise these seeds cannot tell. A claim that
does not hold stays here.
"""
VERDICTS = {True: "yes", False: "**no**", None: "cannot tell"}
Results = Mapping[str, Mapping[int, Result]]  # by arm and seed


def document(name: str, experiment: Experiment, results: Results, **about: Any) -> dict[str, Any]:
    """NAME.json; `about` is what the command knows of how it was run."""
    seeds = list(next(iter(results.values())))
    claims = experiment.parsed()
    return {
        "name": name,
        "kind": experiment.kind,
        "title": experiment.title,
        "about": experiment.about,
        "seeds": seeds,
        "target": experiment.target,
        "panels": list(experiment.panels),
        "claims": {key: {"expression": experiment.claims[key], **judge(claims[key], results, seeds)} for key in claims},
        "arms": {
            arm: {
                metric: summarise({seed: run.metrics.get(metric) for seed, run in runs.items()})
                for metric in experiment.metrics
            }
            for arm, runs in results.items()
        },
        "curves": {arm: {str(seed): dict(run.curve) for seed, run in runs.items()} for arm, runs in results.items()},
        "tried": experiment.tried,
        "wall_s": round(sum(run.elapsed_s for runs in results.values() for run in runs.values()), 1),
        **about,
        "versions": {
            "rlcore": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "transformers")},
        },
    }


def told(result: Mapping[str, Any]) -> Iterator[str]:
    """A line for each claim."""
    for name, claim in result["claims"].items():
        verdict = VERDICTS[claim["holds"]].replace("*", "")
        yield f"{name.replace('_', ' ')}: {verdict} ({claim['expression']}: {reaching(claim['interval'])})"


def write(result: Mapping[str, Any]) -> Path:
    """Write the experiment's JSON and plot, and the page of all experiments; where the page is. Raises UserError where a result
    of more seeds lies there."""
    folder = DOCS / "results"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{result['name']}.json"
    before = len(json.loads(file.read_text(encoding="utf-8"))["seeds"]) if file.is_file() else 0
    if before > len(result["seeds"]):
        raise UserError(f"{file} has {before} seeds and is not replaced by {len(result['seeds'])}: move it away first")
    write_aside(file, json.dumps(result, indent=1) + "\n")
    KINDS[result["kind"]].draw(result, folder / f"{result['name']}.svg")
    every = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    page = DOCS / "results.md"
    write_aside(page, PREFACE + "".join(f"{line}\n" for each in every for line in _experiment(each)))
    _quote(result)
    return page


def _quote(result: Mapping[str, Any]) -> None:
    """Put the plot and the table of arms into pages that ask for them, between `<!-- results: NAME -->` and `<!-- end -->`."""
    asks = re.compile(rf"(<!-- results: {re.escape(result['name'])} -->\n).*?(<!-- end -->)", re.DOTALL)
    told = "\n".join(["", *_arms(result), "", f"`{result['command']}`", "", ""])
    for page in DOCS.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        if asks.search(text):
            write_aside(page, asks.sub(lambda found: found[1] + told + found[2], text))


def _experiment(result: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"## {result['title']}", "", result["about"].strip(), "")
    yield from table(
        ["claim", "expression", "holds", "interval"],
        (
            [name.replace("_", " "), f"`{claim['expression']}`", VERDICTS[claim["holds"]], reaching(claim["interval"])]
            for name, claim in result["claims"].items()
        ),
    )
    yield ""
    yield from _arms(result)
    tried = [result["tried"]] if isinstance(result["tried"], str) else result["tried"]
    yield from ("Tried before:", "", *(f"- {line.strip()}" for line in tried), "")
    versions = ", ".join(f"{package} {which}" for package, which in result["versions"].items())
    models = ", ".join(f"{name} ({digest[:12]})" for name, digest in result["models"].items())
    seeds = ", ".join(map(str, result["seeds"]))
    yield f"`{result['command']}`: seeds {seeds}; {duration(result['wall_s'])} of runs, added up;"
    yield f"{versions}{f'; models: {models}' if models else ''}."


def _arms(result: Mapping[str, Any]) -> Iterator[str]:
    """The plot and the table of arms, the best first."""
    kind = KINDS[result["kind"]]
    yield from (f"![{kind.picture(result)}](results/{result['name']}.svg)", "")
    headline = kind.headline(result)
    ranked = {**result, "arms": _best_first(result["arms"], headline, kind.HIGHER_IS_BETTER)}
    yield from table(*kind.table(ranked))
    yield from ("", f"{kind.note(ranked)} {_best(ranked['arms'], headline, kind)}", "")


def _best_first(arms: Mapping[str, Any], headline: str, higher_is_better: bool) -> dict[str, Any]:
    """Arms without a value come last."""
    worst = -math.inf if higher_is_better else math.inf
    means = {arm: values[headline]["mean"] for arm, values in arms.items()}
    ranked = sorted(arms, key=lambda arm: worst if means[arm] is None else means[arm], reverse=higher_is_better)
    return {arm: arms[arm] for arm in ranked}


def _best(arms: Mapping[str, Any], headline: str, kind: Any) -> str:
    """Which arm is best, and which cannot be told from it by these seeds; arms without a value are not compared. Nothing where
    arms are not ranked."""
    values = {arm: list(of[headline]["per_seed"].values()) for arm, of in arms.items()}
    best, *others = [arm for arm, of in values.items() if None not in of] or [""]
    paired = {arm: interval([a - b for a, b in zip(values[best], values[arm], strict=True)]) for arm in others}
    alike = [arm for arm, bounds in paired.items() if bounds is None or bounds[0] <= 0 <= bounds[1]]
    if not others or not kind.RANKED_BY:
        return ""
    extreme, side = ("Highest", "below") if kind.HIGHER_IS_BETTER else ("Lowest", "above")
    if len(values[best]) == 1:
        return f"{extreme} {kind.RANKED_BY}: {best}; of one seed, which tells no difference."
    told = f"not to be told from it by these seeds: {', '.join(alike)}" if alike else f"every other arm is {side} it"
    return f"{extreme} {kind.RANKED_BY}: {best}; {told} (paired differences of seeds)."
