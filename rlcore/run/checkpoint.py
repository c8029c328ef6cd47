"""Checkpoints that are whole or absent: written aside, flushed, then renamed to `checkpoints/step-N`."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError

from rlcore.errors import UserError


class Saved(Protocol):
    """Something with files of its own in a checkpoint: a learner."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


def save(root: Path, step: int, learners: Mapping[str, Saved], state: Mapping[str, Any]) -> Path:
    """Write `step-N` with a folder per learner and `state.json`. Leaves nothing behind when it fails (a full disk, a kill)."""
    root.mkdir(parents=True, exist_ok=True)
    aside, target = root / f".step-{step}", root / f"step-{step}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for name, learner in learners.items():
            (aside / name).mkdir()
            learner.save(aside / name)
        (aside / "state.json").write_text(json.dumps(state))
        for path in aside.rglob("*"):
            if path.is_file():
                flush(path)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise UserError(f"cannot write checkpoint {target}: {error}; make room, then go on with --resume") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def latest(root: Path) -> int | None:
    """The newest complete checkpoint's step."""
    return max(steps(root), default=None)


def steps(root: Path) -> list[int]:
    found = (re.fullmatch(r"step-(\d+)", path.name) for path in root.glob("step-*"))
    return sorted(int(match[1]) for match in found if match)


def load(root: Path, step: int, learners: Mapping[str, Saved]) -> dict[str, Any]:
    folder = root / f"step-{step}"
    for name, learner in learners.items():
        learner.load(folder / name)
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def prune(root: Path, keep: set[int | None]) -> None:
    """Remove every checkpoint but those; also what a killed process left aside."""
    for step in steps(root):
        if step not in keep:
            shutil.rmtree(root / f"step-{step}")
    for leftover in root.glob(".step-*"):
        shutil.rmtree(leftover)


def flush(path: Path) -> None:
    """Have the disk hold a file before something makes it count: a rename, or a position in it that is written down."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
