"""What comes of arms that learn from preference pairs (`job: preference`), read from their run folders: of the pairs held out,

accuracy                 the share in which the better answer is ahead, with the prior's expected code
margin                   by how much it is ahead on average, in units of the loss's implicit reward
recovered                I(code; factor) / H(factor) by the posterior: how much of what decided the pairs its codes know
prior_recovered          the same by the prior, which sees the prompt alone
perplexity               codes in use, by the mean posterior: 1 is collapse
prior_entropy, kl        of a pair on average, nats
wall_s                   seconds of the run

Arms without codes have the first two alone. (`trainers.preference.codes` has the formulas.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlcore.data.formats.chain_preferences import FACTORS
from rlcore.recipe.schema import Recipe
from rlcore.repro.plot import COLOURS
from rlcore.repro.results import Result
from rlcore.repro.tables import cell

COLUMNS = {
    "accuracy": "held-out accuracy",
    "margin": "margin",
    "recovered": "of the factor known by the posterior",
    "prior_recovered": "by the prior",
    "perplexity": "codes in use",
    "prior_entropy": "entropy of the prior",
    "kl": "KL",
    "wall_s": "seconds",
}
METRICS = tuple(COLUMNS)
RANKED_BY = "held-out accuracy"
HIGHER_IS_BETTER = True
POINTS = 120  # of a run
ACROSS = 4  # panels


def collect(folder: Path, recipe: Recipe, target: float) -> Result:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    codes = {name.removeprefix("validation_codes_"): value for name, value in summary.items() if "_codes_" in name}
    if entropy := codes.get("factor_entropy"):
        codes |= {"recovered": codes["information"] / entropy, "prior_recovered": codes["prior_information"] / entropy}
    known = codes | {"accuracy": summary["validation_accuracy"], "margin": summary["validation_margin"]}
    known["wall_s"] = summary["wall_s"]
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    return Result({name: known.get(name) for name in METRICS}, _code_space(pairs), summary["wall_s"])


def _code_space(pairs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Where each pair's posterior is on the two axes along which they differ most, and the number of its factor; nothing where
    there are not two codes and factors that are known."""
    names = list(FACTORS)
    if not pairs or len(pairs[0].get("posterior", ())) < 2 or any(pair["factor"] not in names for pair in pairs):
        return {}
    posterior = np.array([pair["posterior"] for pair in pairs])
    _, _, axes = np.linalg.svd(posterior - posterior.mean(0), full_matrices=False)
    x, y = ((posterior[:POINTS] @ axis).round(4).tolist() for axis in axes[:2])
    return {"x": x, "y": y, "factor": [names.index(pair["factor"]) for pair in pairs[:POINTS]]}


# -- on the page -----------------------------------------------------------------------------------------------------------


def draw(result: Mapping[str, Any], path: Path) -> None:
    """A panel for each arm that has codes, of its first seed."""
    import matplotlib
    from matplotlib.figure import Figure

    spaces = {arm: next(iter(seeds.values())) for arm, seeds in result["curves"].items()}
    spaces = {arm: space for arm, space in spaces.items() if space}
    rows = max(1, -(-len(spaces) // ACROSS))
    with matplotlib.rc_context({"svg.hashsalt": result["name"], "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(11, 3 * rows), layout="constrained")
        places = figure.subplots(rows, ACROSS, squeeze=False).flatten()
        for axes in places[len(spaces) :]:
            axes.set_axis_off()
        marks = {}
        for axes, (arm, space) in zip(places, spaces.items(), strict=False):
            x, y, factor = (np.array(space[name]) for name in ("x", "y", "factor"))
            for number, name in enumerate(FACTORS):
                marks[name] = axes.scatter(x[factor == number], y[factor == number], s=9, color=COLOURS[number], alpha=0.7)
            axes.set_title(arm, fontsize=9, loc="left")
        if marks:
            figure.legend(list(marks.values()), list(marks), loc="outside right center", fontsize=8, frameon=False)
        figure.savefig(path, metadata={"Date": None})


def picture(result: Mapping[str, Any]) -> str:
    return "posteriors of held-out pairs on their two main axes, by what decided the pair"


def headline(result: Mapping[str, Any]) -> str:
    """The metric by which arms are ranked."""
    return "accuracy"


def table(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    seeds = len(result["seeds"])
    rows = ([arm, *(cell(values[metric], seeds) for metric in COLUMNS)] for arm, values in result["arms"].items())
    return ["arm", *COLUMNS.values()], rows


def note(result: Mapping[str, Any]) -> str:
    return "The plot is of the first seed."
