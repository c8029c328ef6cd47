"""What comes of arms that compress a model (`job: compress`), read from their run folders.

bits_per_weight        of the matrices that are compressed, everything counted, from the file on disk
bits_per_parameter     of the whole file
perplexity             of held-out problems and their solutions
solution               mean log-prob of a token of the solutions, nats
divergence             KL to the dense model over those tokens, nats
accuracy               of problems solved, where the recipe has `eval`
error                  ‖W − Ŵ‖² / ‖W‖², mean over the layers
fit_s                  seconds that the methods took
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rlcore.recipe.schema import Recipe
from rlcore.report.compression import layers
from rlcore.report.compression import picture as draw_picture
from rlcore.repro.results import Result
from rlcore.repro.tables import of_arms

COLUMNS = {
    "bits_per_weight": "bits a weight",
    "bits_per_parameter": "bits a parameter",
    "perplexity": "perplexity",
    "solution": "log-prob of a solution's token",
    "divergence": "KL to the dense model",
    "accuracy": "accuracy",
    "error": "error of the weights",
    "fit_s": "seconds to fit",
}
METRICS = tuple(COLUMNS)
RANKED_BY = "log-prob of a held-out solution's token"
HIGHER_IS_BETTER = True


def collect(folder: Path, recipe: Recipe, target: float) -> Result:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    numbers, errors = layers(folder)
    known = {**summary, "error": fmean(errors) if errors else None}
    return Result({name: known.get(name) for name in METRICS}, {"layer": numbers, "error": errors}, summary["wall_s"])


# -- on the page -----------------------------------------------------------------------------------------------------------


def draw(result: Mapping[str, Any], path: Path) -> None:
    curves = {}
    for arm, values in result["arms"].items():
        first = next(iter(result["curves"][arm].values()))
        bits, quality = values["bits_per_weight"]["mean"], values["solution"]["mean"]
        curves[arm] = {"bits": bits, "quality": quality, "layers": (first["layer"], first["error"])}
    draw_picture(curves, path, salt=result["name"])


def picture(result: Mapping[str, Any]) -> str:
    return "nats that a token of held-out solutions costs, by bits of a weight; error of each layer"


def headline(result: Mapping[str, Any]) -> str:
    """The metric by which arms are ranked."""
    return "solution"


def table(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    return of_arms(result, COLUMNS)


def note(result: Mapping[str, Any]) -> str:
    return "Bits are counted from the files on disk; layers are those of the first seed."
