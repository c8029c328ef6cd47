"""What comes of arms that read long prompts by patterns of sparse attention (`job: prefill`), read from their run folders. For
each pattern, by its label, and each length of a prompt:

share_PATTERN_LENGTH               of the causal blocks, those that were computed
seconds_PATTERN_LENGTH             of the prefill
speedup_PATTERN_LENGTH             over dense prefill in the same run
attention_speedup_PATTERN_LENGTH   of the attention alone, what choosing takes included
processor_s_PATTERN_LENGTH         of the prefill, of all threads, which what else a machine does changes least
processor_speedup_PATTERN_LENGTH   over dense prefill in these
divergence_PATTERN_LENGTH          KL to dense of the next token, nats
answer_PATTERN_LENGTH              log-prob of a token of the numbers that the prompt's end asks for
recalled_PATTERN_LENGTH            share of these numbers that greedy decoding finds

and cluster_s, seconds that finding the clusters of heads took beforehand, where a pattern has any.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcore.recipe.schema import DENSE, Prefill, Recipe
from rlcore.report.headline import number
from rlcore.report.prefill import QUANTITIES
from rlcore.report.prefill import picture as draw_picture
from rlcore.repro.results import Result
from rlcore.repro.tables import cell

RANKED_BY = ""  # arms are models: none is better
HIGHER_IS_BETTER = True


def metrics(recipe: Recipe) -> tuple[str, ...]:
    """Those that an arm of this recipe has."""
    assert isinstance(recipe, Prefill)
    labels = [DENSE, *recipe.patterns]
    return (*(f"{q}_{label}_{n}" for n in recipe.lengths for label in labels for q in QUANTITIES), "cluster_s")


def collect(folder: Path, recipe: Recipe, target: float) -> Result:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    found = {
        f"{quantity}_{label}_{length}": value
        for quantity in QUANTITIES
        for label, by_length in summary[quantity].items()
        for length, value in by_length.items()
    }
    found["cluster_s"] = summary.get("cluster_s")
    curves = {quantity: summary[quantity] for quantity in QUANTITIES}
    return Result({name: found.get(name) for name in metrics(recipe)}, curves, summary["wall_s"])


# -- on the page -----------------------------------------------------------------------------------------------------------


def draw(result: Mapping[str, Any], path: Path) -> None:
    draw_picture({arm: list(seeds.values()) for arm, seeds in result["curves"].items()}, path, salt=result["name"])


def picture(result: Mapping[str, Any]) -> str:
    return "share of blocks computed, speed-ups, KL to dense and how likely the hidden numbers are, by tokens of the prompt"


def headline(result: Mapping[str, Any]) -> str:
    """The metric by which arms are sorted."""
    return f"share_{_read(result)[0]}"


def table(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    """A row for each pattern, length and arm."""
    seeds = len(result["seeds"])
    rows = (
        [f"{arm}, {label.rpartition('_')[0]}", label.rpartition("_")[2], *(cell(of[f"{q}_{label}"], seeds) for q in QUANTITIES)]
        for label in _read(result)
        for arm, of in result["arms"].items()
        if f"share_{label}" in of
    )
    return ["read", "tokens", *QUANTITIES.values()], rows


def note(result: Mapping[str, Any]) -> str:
    costs = {arm: of["cluster_s"]["mean"] for arm, of in result["arms"].items() if of["cluster_s"]["mean"] is not None}
    told = ", ".join(f"{number(seconds)} s for {arm}" for arm, seconds in costs.items())
    return (
        "Speed-ups are over dense prefill in the same run: in seconds that went by, and in seconds of the processor, which "
        "alone can be trusted where other programs had a part of the machine. Clustering the heads beforehand took "
        f"{told or 'no time'}."
    )


def _read(result: Mapping[str, Any]) -> list[str]:
    """PATTERN_LENGTH of all arms."""
    names = dict.fromkeys(metric for of in result["arms"].values() for metric in of if metric.startswith("share_"))
    return [name.removeprefix("share_") for name in names]
