"""Any task of Reasoning Gym (Stojanovski et al., 2025, arXiv 2505.24760), made on the spot, graded by the task's own check."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from rlcore.data.splits import distinct, known_split
from rlcore.errors import UserError, nearest
from rlcore.types import Problem, seed_from

CHUNK = 500  # a task object knows its size, and some tasks have no problem beyond it


def gym(
    *, task: str, count: int = 1000, split: str = "train", seed: int = 0, config: Mapping[str, Any] | None = None
) -> list[Problem]:
    """`config` is the task's own configuration. Where a task accepts many answers and names none, the answer is empty."""
    known_split("gym", split)
    with contextlib.redirect_stdout(io.StringIO()):  # some tasks run example programs, which print
        return distinct(_draws(task, split, seed, dict(config or {})), f"gym {task}", split, count)


def _draws(task: str, split: str, seed: int, config: Mapping[str, Any]) -> Iterator[Problem]:
    for chunk in itertools.count():
        # The n-th problem is drawn with seed + n, so neighbouring seeds would give nearly the same problems.
        dataset = _dataset(task, config, seed_from("gym", task, split, seed, chunk) % 2**31)
        for n in range(CHUNK):
            yield _problem(dataset, dataset[n], task, config, f"gym/{task}/{split}/{chunk * CHUNK + n}")


def _dataset(task: str, config: Mapping[str, Any], seed: int) -> Any:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError("the source 'gym' needs the package reasoning-gym: pip install 'rlcore[cpu]'") from error
    if task not in DATASETS:
        raise UserError(f"gym: there is no task {task!r}{nearest(task, list(DATASETS))}")
    make, make_config = DATASETS[task]
    known = [field.name for field in dataclasses.fields(make_config) if field.name not in ("seed", "size")]
    for key in config:
        if key not in known:
            raise UserError(f"gym: the config of task {task!r} has no {key!r}{nearest(key, known)}")
    try:
        return make(config=make_config(**config, seed=seed, size=CHUNK))
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"gym: task {task!r} refuses its config: {error or 'out of range'}") from error


def _problem(dataset: Any, drawn: Mapping[str, Any], task: str, config: Mapping[str, Any], id_: str) -> Problem:
    """Grading will see the entry after JSON; where the task's check then refuses the task's own answer, it would call
    every answer wrong."""
    entry = json.loads(json.dumps(drawn, default=str))
    answer = entry["answer"]
    refused = answer is not None and dataset.score_answer(answer, entry) < 1
    unusable = {"unusable": "the task's check refuses the task's own answer"} if refused else {}
    return Problem(
        id_,
        drawn["question"],
        answer or "",
        grader="gym",
        meta={"task": task, "config": dict(config), "entry": entry} | unusable,
    )
