"""Real runs for the rewards that need one: the quickstart recipe on a tiny model, a few steps of a few tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlcore import jobs
from rlcore.recipe.load import load


@pytest.fixture
def launch(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run the quickstart recipe, shrunk, in a folder of its own; returns the folder."""

    def run(name: str, *overrides: str, resume: bool = False) -> Path:
        folder = tmp_path / name
        small = [
            f"model={tiny}",
            f"output={folder}",
            "threads=1",
            "steps=3",
            "data.count=60",
            "rollout.prompts_per_step=4",
            "rollout.samples=4",
            "rollout.max_new_tokens=12",
            "checkpoint.every=1",
            "eval=null",
        ]
        jobs.run(load(["quickstart", *small, *overrides]), resume)
        return folder

    return run


@pytest.fixture
def steps() -> Callable[[Path], list[dict[str, float]]]:
    """The metrics of a run's training steps, without what depends on the clock."""

    def read(folder: Path) -> list[dict[str, float]]:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        timeless = [{k: v for k, v in row.items() if not k.startswith("time/") and k != "tokens_per_second"} for row in rows]
        return [row for row in timeless if "grad_norm" in row]

    return read
