"""What comes of arms that look at a model through perturbations (`job: sensitivity`), read from their run folders. For each
kind of perturbation, at the strength `compared_at` of the recipe, and for each quantiser by its label:

kl_NAME            KL to the dense model over the tokens of held-out solutions, nats
perplexity_NAME    of held-out problems and their solutions
solution_NAME      mean log-prob of a token of the solutions, nats
norm_NAME          of the change, relative to what is changed
accuracy_NAME      of problems solved, where the recipe has `eval`

and perplexity_dense, solution_dense, accuracy_dense of the model without a change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from rlcore.recipe.schema import Perturbation, Recipe, Sensitivity
from rlcore.report.headline import number
from rlcore.report.sensitivity import curve, read
from rlcore.report.sensitivity import picture as draw_picture
from rlcore.repro.results import Result
from rlcore.repro.tables import cell

QUANTITIES = ("kl", "perplexity", "solution", "norm", "accuracy")
RANKED_BY = ""  # arms are models, or parts of them: none is better
HIGHER_IS_BETTER = True


def metrics(recipe: Recipe) -> tuple[str, ...]:
    """Those that an arm of this recipe has."""
    assert isinstance(recipe, Sensitivity)
    names = [*recipe.kinds, *(quantiser.label for quantiser in recipe.quantisers)]
    dense = [f"{quantity}_dense" for quantity in ("perplexity", "solution", "accuracy")]
    return (*(f"{quantity}_{name}" for quantity in QUANTITIES for name in names), *dense)


def collect(folder: Path, recipe: Recipe, target: float) -> Result:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    found = {f"{quantity}_{name}": value for quantity in QUANTITIES for name, value in summary.get(quantity, {}).items()}
    found |= {f"{quantity}_dense": value for quantity, value in summary["dense"].items()}
    return Result({name: found.get(name) for name in metrics(recipe)}, curve(read(folder)), summary["wall_s"])


# -- on the page -----------------------------------------------------------------------------------------------------------


def draw(result: Mapping[str, Any], path: Path) -> None:
    draw_picture({arm: list(seeds.values()) for arm, seeds in result["curves"].items()}, path, salt=result["name"])


def picture(result: Mapping[str, Any]) -> str:
    return "KL to the dense model by the relative norm of a change, for each kind of change; quantisers are points"


def headline(result: Mapping[str, Any]) -> str:
    """The metric by which arms are sorted."""
    return _compared(result)[0]


def table(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    """A row for each kind and quantiser, a column for each arm."""
    arms, seeds = result["arms"], len(result["seeds"])
    rows = ([name.removeprefix("kl_"), *(_told(of, name, seeds) for of in arms.values())] for name in _compared(result))
    return ["changed by", *arms], rows


def note(result: Mapping[str, Any]) -> str:
    return "KL to the dense model, nats a token; of quantisers also the relative norm that their change comes to."


def _compared(result: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(metric for of in result["arms"].values() for metric in of if metric.startswith("kl_")))


def _told(of: Mapping[str, Any], metric: str, seeds: int) -> str:
    name = metric.removeprefix("kl_")
    norm = None if name in get_args(Perturbation) else of[f"norm_{name}"]["mean"]
    return cell(of[metric], seeds) + ("" if norm is None else f", norm {number(norm)}")
