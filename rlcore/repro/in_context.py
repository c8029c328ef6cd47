"""What comes of arms that read demonstrations (`job: in_context`), read from their run folders. For each layout, and each
number K of demonstrations,

accuracy_LAYOUT_K    share of the episodes whose right label is the likeliest
generated_LAYOUT_K   share in which greedy decoding writes it
own_LAYOUT_K         probability of a demonstration's own label where it stands
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcore.recipe.schema import InContext, Recipe
from rlcore.repro.plot import Panel, described, plot
from rlcore.repro.results import Result
from rlcore.repro.tables import cell

QUANTITIES = {"accuracy": "accuracy", "generated": "greedy decoding right", "own": "probability of own label"}
DRAWN = ("accuracy", "own")
RANKED_BY = ""  # arms are models and data: none is better
HIGHER_IS_BETTER = True


def metrics(recipe: Recipe) -> tuple[str, ...]:
    """Those that an arm of this recipe has."""
    assert isinstance(recipe, InContext)
    return tuple(f"{what}_{layout}_{k}" for what in QUANTITIES for layout in recipe.layouts for k in recipe.demonstrations)


def collect(folder: Path, recipe: Recipe, target: float) -> Result:
    """Of the curves each is a quantity of a layout, by K."""
    assert isinstance(recipe, InContext)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    curves: dict[str, list[float]] = {"demonstrations": list(recipe.demonstrations)}
    for what in QUANTITIES:
        for layout in recipe.layouts:
            curves[f"{what}_{layout}"] = [summary[f"{what}_{layout}_{k}"] for k in recipe.demonstrations]
    return Result({name: summary[name] for name in metrics(recipe)}, curves, summary["wall_s"])


# -- on the page -----------------------------------------------------------------------------------------------------------


def draw(result: Mapping[str, Any], path: Path) -> None:
    """A line for each layout, in a panel for each arm and quantity."""
    curves: dict[str, dict[str, dict[str, Any]]] = {}
    for arm, seeds in result["curves"].items():
        for seed, curve in seeds.items():
            for name, values in curve.items():
                what, _, layout = name.partition("_")
                if what in DRAWN:
                    line = curves.setdefault(layout, {}).setdefault(seed, {"demonstrations": curve["demonstrations"]})
                    line[f"{what} {arm}"] = values
    plot({**result, "curves": curves}, _panels(result), path)


def picture(result: Mapping[str, Any]) -> str:
    return described(_panels(result))


def headline(result: Mapping[str, Any]) -> str:
    """The metric by which arms would be sorted."""
    return next(iter(next(iter(result["arms"].values()))))


def table(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    """A row for each arm, quantity and layout, a column for each K."""
    seeds = len(result["seeds"])
    first = next(iter(next(iter(result["curves"].values())).values()))
    counts = first["demonstrations"]
    rows = (
        [f"{arm}, {told}", layout, *(cell(of[f"{what}_{layout}_{k}"], seeds) for k in counts)]
        for arm, of in result["arms"].items()
        for what, told in QUANTITIES.items()
        for layout in _layouts(first)
    )
    return ["", "layout", *(f"K = {k}" for k in counts)], rows


def note(result: Mapping[str, Any]) -> str:
    return "Own labels are those of the demonstrations, predicted where the originals stand."


def _layouts(curve: Mapping[str, Any]) -> list[str]:
    return [name.removeprefix("own_") for name in curve if name.startswith("own_")]


def _panels(result: Mapping[str, Any]) -> list[Panel]:
    return [
        Panel("demonstrations", f"{what} {arm}", f"demonstrations, {arm}", QUANTITIES[what], doubling=True)
        for what in DRAWN
        for arm in result["arms"]
    ]
