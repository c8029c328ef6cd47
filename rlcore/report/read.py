"""Reads a run folder for the report: the recipe, the metrics as one series a name, the summary. Judges nothing.

The folder is what `rlcore.run` left behind. The completions in its ledger are read by `rlcore.report.samples`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rlcore.errors import UserError


@dataclass(frozen=True)
class Series:
    """One metric over the run."""

    steps: np.ndarray  # (N,) rising
    values: np.ndarray  # (N,) NaN where the run recorded no finite number


@dataclass(frozen=True)
class Run:
    folder: Path
    recipe: Mapping[str, Any]
    recipe_text: str
    metrics: Mapping[str, Series]  # never empty
    summary: Mapping[str, Any]  # empty until the run has ended

    @property
    def last_step(self) -> int:
        return max(int(series.steps[-1]) for series in self.metrics.values())


def read_run(folder: Path) -> Run:
    """Raises UserError for a folder that is no run, or that has no metrics yet."""
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        raise UserError(f"{folder} is no run folder: it has no recipe.yaml")
    text = recipe.read_text(encoding="utf-8")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{recipe}: not readable as YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{recipe}: a recipe is a mapping of keys to values, this is {type(values).__name__}")
    return Run(folder, values, text, _metrics(folder / "metrics.jsonl"), _summary(folder / "summary.json"))


def _metrics(path: Path) -> dict[str, Series]:
    """One series a name. Where two lines of a step have the same metric, the first counts: the step itself comes before
    its evaluation, which writes a line of its own."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    points: dict[str, dict[int, float]] = {}
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.endswith("\n") and not line.endswith("}"):
            break  # the run is writing this line right now
        step, row = _row(line, f"{path}:{number}")
        for name, value in row.items():
            points.setdefault(name, {}).setdefault(step, value)
    if not points:
        raise UserError(f"{path.parent} has nothing to report yet: {path.name} has no metrics; its first step has not ended")
    return {name: _series(values) for name, values in points.items()}


def _row(line: str, where: str) -> tuple[int, dict[str, float]]:
    try:
        row = json.loads(line)
        return int(row.pop("step")), {name: _finite(value) for name, value in row.items()}
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f'{where}: not a line of metrics; expected {{"step": 1, "NAME": NUMBER, …}}') from error


def _finite(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) else float(value)


def _series(points: Mapping[int, float]) -> Series:
    steps = sorted(points)
    return Series(np.array(steps), np.array([points[step] for step in steps]))


def _summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a JSON object") from error
