"""What comes of arms that learn from solutions (`job: sft`), read from their run folders: of held-out problems,

loss            mean negative log-prob of a token of their solutions, nats
perplexity      of a token of problems and solutions
flops           forward, of a token; cache_bytes, layers and skipped are a token's as well
parameters      of the whole model
cache_bytes     of keys and values
layers          how many layers' worth of modules a token is given
depth           layers and rounds, one after the other
skipped         share of the routers' choices that are SKIP; 0 without routers
wall_s          seconds of the run

FLOPs, bytes, layers and what is skipped are counted, by what the texts were routed to (`rlcore.evaluation.held_out`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcore.recipe.schema import Recipe
from rlcore.repro.plot import COLOURS
from rlcore.repro.results import Result
from rlcore.repro.tables import of_arms

COLUMNS = {
    "loss": "held-out loss",
    "perplexity": "perplexity",
    "flops": "FLOPs a token",
    "parameters": "parameters",
    "cache_bytes": "cache, bytes a token",
    "layers": "layers a token",
    "depth": "depth",
    "skipped": "skipped",
    "wall_s": "seconds",
}
METRICS = tuple(COLUMNS)
RANKED_BY = "held-out loss"
HIGHER_IS_BETTER = False
KINDS = {"attention": "attention", "feed_forward": "feed-forward"}


def collect(folder: Path, recipe: Recipe, target: float) -> Result:
    from rlcore.evaluation.held_out import ROUTING

    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    known = {**summary, "loss": summary["held_out_loss"]}
    file = folder / ROUTING
    routing = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    rounds = {kind: list(itertools.chain(*blocks)) for kind, blocks in routing.items() if kind in KINDS}
    return Result({name: known.get(name) for name in METRICS}, rounds, summary["wall_s"])


# -- on the page -----------------------------------------------------------------------------------------------------------


def draw(result: Mapping[str, Any], path: Path) -> None:
    """The loss by FLOPs; and, of each arm that has routers, what share of the tokens chose each module in each round."""
    import matplotlib
    from matplotlib.figure import Figure

    firsts = {arm: next(iter(seeds.values())) for arm, seeds in result["curves"].items()}
    routed = {arm: rounds for arm, rounds in firsts.items() if rounds}
    with matplotlib.rc_context({"svg.hashsalt": result["name"], "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(11, 4 + 2.6 * bool(routed)), layout="constrained")
        above, *below = figure.subfigures(1 + bool(routed), 1, squeeze=False)[:, 0]
        _losses(above.subplots(), result["arms"])
        if below:
            places = below[0].subplots(len(KINDS), len(routed), squeeze=False)
            for (arm, rounds), column in zip(routed.items(), places.T, strict=True):
                for kind, axes in zip(KINDS, column, strict=True):
                    mesh = _shares(axes, rounds[kind])
                column[0].set_title(arm, fontsize=8)
            for kind, axes in zip(KINDS.values(), places[:, 0], strict=True):
                axes.set_ylabel(f"round, {kind}", fontsize=8)
            below[0].colorbar(mesh, ax=places, label="share of tokens")
        figure.savefig(path, metadata={"Date": None})


def _losses(axes: Any, arms: Mapping[str, Any]) -> None:
    """A point for each seed, with a ring around their mean."""
    counted = {arm: values for arm, values in arms.items() if values["flops"]["mean"] is not None}  # of Llamas and mixtures
    for index, (arm, values) in enumerate(counted.items()):
        colour = COLOURS[index % len(COLOURS)]
        flops, losses = (list(values[metric]["per_seed"].values()) for metric in ("flops", "loss"))
        axes.plot(flops, losses, ".", color=colour, markersize=5)
        mean = (values["flops"]["mean"], values["loss"]["mean"])
        axes.plot(*mean, "o", color=colour, markersize=9, fillstyle="none")
        axes.annotate(arm, mean, (7, 4), textcoords="offset points", fontsize=8)
    axes.grid(alpha=0.3)
    room = 1.15 * max((values["flops"]["mean"] for values in counted.values()), default=1.0)  # for the names
    axes.set(xlabel="forward FLOPs a token", ylabel="held-out loss, nats", xlim=(0, room))


def _shares(axes: Any, rounds: Sequence[Sequence[float]]) -> Any:
    """`rounds`: of each round, the shares of the modules and of SKIP."""
    mesh = axes.pcolormesh(rounds, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=0.5)
    modules = len(rounds[0]) - 1
    axes.set_xticks([i + 0.5 for i in range(modules + 1)], [*map(str, range(1, modules + 1)), "SKIP"], fontsize=7)
    axes.set_yticks([i + 0.5 for i in range(len(rounds))], list(map(str, range(1, len(rounds) + 1))), fontsize=7)
    axes.invert_yaxis()
    return mesh


def picture(result: Mapping[str, Any]) -> str:
    return "held-out loss by FLOPs of a token; share of the tokens that chose each module, by round, with the first seed"


def headline(result: Mapping[str, Any]) -> str:
    """The metric by which arms are ranked."""
    return "loss"


def table(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    return of_arms(result, COLUMNS)


def note(result: Mapping[str, Any]) -> str:
    return "FLOPs are of a forward pass and counted, not timed: seconds are those of this implementation."
