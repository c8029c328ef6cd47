"""Trains an experiment's models and runs, each in a process of its own: the models one after the other, then the runs, several
at a time. A run that is done is not done again, and one that was interrupted goes on from its checkpoint.

A run's console goes to `runs/repro/NAME/ARM/SEED.log`, beside its folder (that of a model is `runs/repro/models/MODEL-…`),
the digest of the code that made it to `SEED.code`: runs of other recipes, or of other code, are refused and never mixed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlcore.errors import UserError
from rlcore.recipe.load import differences, load
from rlcore.recipe.schema import Annotate, ClusterHeads, Compress, Heads
from rlcore.repro.experiment import Planned, Task
from rlcore.run.console import say, watched
from rollout import annotate
from rollout.decoding import heads
from rollout.prefill import clusters

POLL_S = 0.2
SOURCES = {
    "rlcore": "*.py",
    "compress": "*.py",
    "rewards": "*.py",
    "rollout": "*.py",
    "trainers": "*.py",
    "recipes": "toy/*.yaml",
}


def code() -> str:
    """SHA-256 of the project's sources, and of the toys' recipes, which runs name and do not hold; a user's own modules are not
    among them."""
    found = hashlib.sha256()
    for package, pattern in SOURCES.items():
        [folder] = importlib.import_module(package).__path__
        for file in sorted(Path(folder).rglob(pattern)):
            found.update(f"{package}/{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return found.hexdigest()


def refuse_others(runs: Iterable[Planned], now: str) -> None:
    """Raises UserError where a run's folder holds one of another recipe or of other code than `now`."""
    for run in runs:
        file = run.folder / "recipe.yaml"
        if not file.is_file():
            continue
        made_by = _code(run).read_text() if _code(run).is_file() else ""
        if made_by != now:
            raise UserError(f"{run.folder} holds a run of other code than this: move it away, or delete it")
        before = load([str(file)]).recipe.model_dump(mode="json")
        if changed := list(differences(before, run.recipe.model_dump(mode="json"))):
            raise UserError(f"{run.folder} holds a run that differs in {', '.join(changed)}: move it away, or delete it")


def warm_start(models: Iterable[tuple[str, int]]) -> dict[str, str]:
    """Make the models that runs start from, by name and seed, once, before the runs would wait for each other. SHA-256 of the
    weights by name; a model whose weights differ by seed, or lie on a hub, is not among them."""
    from rlcore.toy.warmstart import resolve

    places: dict[str, set[str]] = {}
    for model, seed in dict.fromkeys(models):
        places.setdefault(model, set()).add(resolve(model, seed))
    files = {Path(name).name: [Path(place, "model.safetensors") for place in found] for name, found in places.items()}
    return {name: _digest(found[:1]) for name, found in files.items() if len(found) == 1 and found[0].is_file()}


def make_models(models: Sequence[Planned], now: str) -> dict[str, str]:
    """Make those that are not made, one after the other, as one may build on another; SHA-256 of their weights, or trees, by
    name."""
    for model in models:
        if not _is_done(model):
            say(f"making {model.title}")
            train([model], 1, now)
    return {model.name: _digest(_made(model)) for model in models}


def train(runs: Sequence[Planned], jobs: int, now: str) -> None:
    """Do the runs that are not done, so many at a time, with the code `now`."""
    waiting = [run for run in runs if not _is_done(run)]
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {len(runs)} runs are done already")
    do(waiting, jobs, now)


def do(tasks: Sequence[Task], jobs: int, now: str) -> None:
    """Each in a process of its own. Raises UserError, with its log and last line, where one fails, and where the code is not
    `now` any more; the others are interrupted then, as they are by Ctrl-C, and runs checkpoint the step that they are at."""
    waiting = list(tasks)
    going: dict[subprocess.Popen, Task] = {}
    with watched("runs", len(tasks)) as progress, _interrupted_at_the_end(going):
        while waiting or going:
            while waiting and len(going) < jobs:
                task = waiting.pop(0)
                going[_start(task, now)] = task
            time.sleep(POLL_S)
            for process in [process for process in going if process.poll() is not None]:
                task = going.pop(process)
                if process.returncode:
                    raise UserError(f"{task.title} failed: {_last_line(task)} (all of it: {_log(task)})")
                progress(1)
                say(f"{task.title}: {_told(task)}")


def _made(model: Planned) -> list[Path]:
    if isinstance(model.recipe, Annotate):
        return [model.folder / annotate.FILE]
    if isinstance(model.recipe, Heads):
        return [model.folder / "heads" / label / heads.WEIGHTS for label in model.recipe.heads]
    if isinstance(model.recipe, ClusterHeads):
        return [model.folder / clusters.FILE]
    return [model.folder / "model" / ("compressed.safetensors" if isinstance(model.recipe, Compress) else "model.safetensors")]


def _digest(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _start(task: Task, now: str) -> subprocess.Popen:
    """In a session of its own: the terminal's Ctrl-C reaches this process alone, which tells each task once. With one thread,
    on which what is measured may depend."""
    if code() != now:
        raise UserError("the code has changed since this began, and the numbers would be of both: begin anew, without the runs")
    _log(task).parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "rlcore.cli.main", *task.command]
    _code(task).write_text(now)
    settings: dict[str, Any] = dict(stdin=subprocess.DEVNULL, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    with _log(task).open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, **settings)


@contextmanager
def _interrupted_at_the_end(going: Mapping[subprocess.Popen, Task]) -> Iterator[None]:
    """However this process ends, SIGTERM included, its runs do; also where it is a script's background job, which is started
    with SIGINT ignored, and so would its runs be."""
    stopping = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, signal.default_int_handler) for each in stopping]
    try:
        yield
    finally:
        if going:
            say(f"{len(going)} of the runs are ended after a checkpoint (Ctrl-C: at once); the same command goes on with them")
        try:
            for process in going:
                process.send_signal(signal.SIGINT)
            for process in going:
                process.wait()
        finally:
            for process in going:
                process.kill()
            for each, handler in zip(stopping, before, strict=True):
                signal.signal(each, handler)


def _is_done(task: Task) -> bool:
    return (task.folder / "summary.json").is_file()


def _log(task: Task) -> Path:
    return task.folder.with_name(f"{task.folder.name}.log")


def _code(task: Task) -> Path:
    return task.folder.with_name(f"{task.folder.name}.code")


def _last_line(task: Task) -> str:
    lines = _log(task).read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _told(task: Task) -> str:
    if not _is_done(task):  # no run, but a measurement
        return "measured"
    summary = json.loads((task.folder / "summary.json").read_text())
    accuracy = [f"{summary[name]:.1%}" for name in ("accuracy_before", "accuracy_after") if name in summary]
    return f"accuracy {' → '.join(accuracy)} in {summary['wall_s']:.0f} s" if accuracy else f"took {summary['wall_s']:.0f} s"
