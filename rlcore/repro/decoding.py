"""What comes of arms that measure drafters (`job: decode_bench`), read from their run folders. For each method by its label,
and for `plain` and `engine`; at other batch sizes than the recipe's first with it at the end, as in speedup_gsd_16:

speedup_LABEL             tokens a second, in multiples of plain decoding's
over_engine_LABEL         the same, in multiples of the engine's without a drafter
reduction_LABEL           passes of plain decoding, in multiples of its own for as many tokens
tokens_per_pass_LABEL     of one row
accepted_LABEL            share of the tokens drafted
draft_forwards_LABEL      of the draft model, for each pass of the target
draft_share_LABEL         of the time of rounds that went into proposing drafts
tokens_per_second_LABEL
cache_bytes_LABEL         of keys and values, those of a draft model included
exact_LABEL               share of the completions that are plain decoding's, token for token
logprob_difference_LABEL  the largest; not where greedy
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcore.recipe.schema import UNDRAFTED, DecodeBench, Recipe
from rlcore.report.bench import curve, read
from rlcore.report.bench import picture as draw_picture
from rlcore.repro.results import Result
from rlcore.repro.tables import cell
from rollout.decoding.bench import QUANTITIES

RANKED_BY = ""  # arms are models: none is better
HIGHER_IS_BETTER = True


def metrics(recipe: Recipe) -> tuple[str, ...]:
    """Those that an arm of this recipe has."""
    assert isinstance(recipe, DecodeBench)
    names = [recipe.named(label, size) for size in recipe.batch_sizes for label in (*UNDRAFTED, *recipe.methods)]
    return tuple(f"{quantity}_{name}" for quantity in QUANTITIES for name in names)


def collect(folder: Path, recipe: Recipe, target: float) -> Result:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    found = {f"{quantity}_{name}": value for quantity in QUANTITIES for name, value in summary.get(quantity, {}).items()}
    return Result({name: found.get(name) for name in metrics(recipe)}, curve(read(folder)), summary["wall_s"])


# -- on the page -----------------------------------------------------------------------------------------------------------


def draw(result: Mapping[str, Any], path: Path) -> None:
    draw_picture({arm: list(seeds.values()) for arm, seeds in result["curves"].items()}, path, salt=result["name"])


def picture(result: Mapping[str, Any]) -> str:
    return "speed-up over plain decoding and tokens a pass over a row, for each method by batch size"


def headline(result: Mapping[str, Any]) -> str:
    """The metric by which arms are sorted."""
    return next(f"reduction_{name}" for name in _measured(result) if name not in UNDRAFTED)


def table(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    """A row for each method at each batch size, two columns for each arm."""
    arms, seeds = result["arms"], len(result["seeds"])
    head = [f"{arm}: {what}" for arm in arms for what in ("fewer passes", "speed-up")]
    shown = [name for name in _measured(result) if name != "plain"]
    rows = (
        [name, *(cell(of[f"{quantity}_{name}"], seeds) for of in arms.values() for quantity in ("reduction", "speedup"))]
        for name in shown
    )
    return ["method", *head], rows


def note(result: Mapping[str, Any]) -> str:
    return (
        "Fewer passes: those of plain decoding, in multiples of the method's for as many tokens. Speed-up: tokens a second, in "
        "multiples of plain decoding's, which is the same decoder without drafts; `engine` is the transformers engine without "
        "a drafter. A number at the end of a name is a batch size other than the first."
    )


def _measured(result: Mapping[str, Any]) -> list[str]:
    metrics = dict.fromkeys(metric for of in result["arms"].values() for metric in of)
    return [metric.removeprefix("speedup_") for metric in metrics if metric.startswith("speedup_")]
