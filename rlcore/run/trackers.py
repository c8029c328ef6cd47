"""Experiment trackers that a recipe's `log` asks for. Each becomes a function of (step, metrics) when the run begins; that its
package is there is known before, when `rlcore.run.folder` makes the run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlcore.errors import UserError

Tracker = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Tracked:
    """The run that a tracker is told of. `id` is the same in every resume."""

    folder: Path
    name: str
    id: str
    recipe: Mapping[str, Any]


def find_trackers(names: Sequence[str]) -> list[Callable[[Tracked], Tracker]]:
    """How each is opened, its package imported. Raises UserError for a package that is not installed."""
    return [partial(_OPEN[name], _import(name)) for name in names]


def _import(name: str) -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError as error:
        raise UserError(f"log: {name!r} is not installed: pip install it, or drop it from the recipe") from error


def _tensorboard(module: Any, run: Tracked) -> Tracker:
    writer = module.SummaryWriter(log_dir=str(run.folder / "tensorboard"))

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def _wandb(module: Any, run: Tracked) -> Tracker:
    module.init(project="rlcore", name=run.name, id=run.id, resume="allow", config=dict(run.recipe))
    return lambda step, metrics: module.log(dict(metrics), step=step)


def _trackio(module: Any, run: Tracked) -> Tracker:
    module.init(project="rlcore", name=run.name, config=dict(run.recipe))
    return lambda step, metrics: module.log(dict(metrics), step=step)


_OPEN: dict[str, Callable[[Any, Tracked], Tracker]] = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
