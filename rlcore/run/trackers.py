"""Experiment trackers that a recipe's `log` asks for. Each becomes a function of (step, metrics)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcore.errors import UserError

Tracker = Callable[[int, Mapping[str, float]], None]


def open_trackers(names: Sequence[str], folder: Path, run_name: str, config: Mapping[str, Any]) -> list[Tracker]:
    return [_OPEN[name](folder, run_name, config) for name in names]


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"log: {package.split('.')[0]!r} is not installed: pip install it, or drop it from the recipe"
        ) from error


def _tensorboard(folder: Path, run_name: str, config: Mapping[str, Any]) -> Tracker:
    writer = _import("torch.utils.tensorboard").SummaryWriter(log_dir=str(folder / "tensorboard"))

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def _wandb_like(package: str) -> Callable[[Path, str, Mapping[str, Any]], Tracker]:
    def open_it(folder: Path, run_name: str, config: Mapping[str, Any]) -> Tracker:
        module = _import(package)
        module.init(project="rlcore", name=run_name, config=dict(config))
        return lambda step, metrics: module.log(dict(metrics), step=step)

    return open_it


_OPEN: dict[str, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb_like("wandb"),
    "trackio": _wandb_like("trackio"),
}
