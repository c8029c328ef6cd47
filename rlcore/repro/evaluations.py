"""What comes of arms that ask a model problems (`job: eval`), read from their run folders.

accuracy           of the samples; the seed draws them
pass_at_k          share of problems of which one of the k samples is right, k those that the recipe asks for
majority           share of problems of which the most frequent answer is right
distinct           different solutions of a problem among its samples
distinct_correct   those of them that are right
entropy            of a token, nats, under the distribution sampled from
length             tokens of a completion
truncated          share of the completions that the limit cut
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcore.recipe.schema import Evaluate, Recipe
from rlcore.repro.plot import COLOURS
from rlcore.repro.results import Result
from rlcore.repro.tables import of_arms

COLUMNS = {
    "accuracy": "accuracy",
    "pass_at_k": "one of k is right",
    "majority": "majority is right",
    "distinct": "different solutions",
    "distinct_correct": "different right ones",
    "entropy": "entropy of a token",
    "length": "tokens",
    "truncated": "truncated",
}
METRICS = tuple(COLUMNS)
RANKED_BY = "accuracy"
HIGHER_IS_BETTER = True


def collect(folder: Path, recipe: Recipe, target: float) -> Result:
    assert isinstance(recipe, Evaluate)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    k = recipe.eval.samples
    known = {**summary, "pass_at_k": summary.get(f"pass@{k}"), "majority": summary.get(f"maj@{k}")}
    return Result({name: known.get(name) for name in METRICS}, {}, summary["wall_s"])


# -- on the page -----------------------------------------------------------------------------------------------------------


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Accuracy, of samples and of problems, by how many different right solutions there are: a point for each seed, with a ring
    around their mean."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": result["name"], "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(11, 5), layout="constrained")
        for axes, metric in zip(figure.subplots(1, 2), ("accuracy", "pass_at_k"), strict=True):
            for index, (arm, values) in enumerate(result["arms"].items()):
                _points(axes, arm, values["distinct_correct"], values[metric], COLOURS[index % len(COLOURS)])
            axes.set(xlabel=COLUMNS["distinct_correct"], ylabel=COLUMNS[metric])
            axes.grid(alpha=0.3)
        figure.savefig(path, metadata={"Date": None})


def _points(axes: Any, arm: str, x: Mapping[str, Any], y: Mapping[str, Any], colour: str) -> None:
    if x["mean"] is None or y["mean"] is None:
        return
    axes.plot(list(x["per_seed"].values()), list(y["per_seed"].values()), ".", color=colour, markersize=4)
    axes.plot(x["mean"], y["mean"], "o", color=colour, markersize=8, fillstyle="none")
    axes.annotate(arm, (x["mean"], y["mean"]), (6, 3), textcoords="offset points", fontsize=7)


def picture(result: Mapping[str, Any]) -> str:
    return "accuracy of samples, and share of problems with a right one, by different right solutions of a problem"


def headline(result: Mapping[str, Any]) -> str:
    """The metric by which arms are ranked."""
    return "accuracy"


def table(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    return of_arms(result, COLUMNS)


def note(result: Mapping[str, Any]) -> str:
    return "Entropy is that of the distribution sampled from, temperature and truncation included."
