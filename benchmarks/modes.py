"""Synchronous and asynchronous training on two cores: wall-clock time to the same accuracy, on a workload with long-tailed
lengths, and what `benchmarks.simulate` predicts for it.

    python -m benchmarks.modes --json FILE        goes on where it was cut off

Two arms have the rollout worker on core 0 and the learner on core 1: synchronous, where each waits for the other, and
asynchronous with staleness cap 1, where both work. In the third both cores serve each phase in turn. One problem in ten is far
longer than what the toy has learned: most completions have some ten tokens, those have up to 200, and a step waits for them.

The prediction is made of the seconds of a round of vLLM's on the same cores, by rows; of learning and of a sync, from the
synchronous run on the same cores; and of its lengths.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pyarrow import parquet

from benchmarks.common import accuracy_after, arguments, finish, steps_of
from benchmarks.scaling import round_seconds
from benchmarks.simulate import predict
from rlcore.recipe.schema import Mode

PROMPTS, SAMPLES = 32, 8
RECIPE = [
    "quickstart",
    "cluster/cpu",
    "cluster.workers=1",
    "cluster.ranks=1",
    "data=[{name: chain, weight: 0.9}, {name: chain, difficulty: [16, 24], weight: 0.1}]",
    f"rollout.prompts_per_step={PROMPTS}",
    f"rollout.samples={SAMPLES}",
    "rollout.max_new_tokens=200",
    "algorithm.correction=token_tis",
    "eval={every: 1000, data: {name: chain, split: test, count: 300}, samples: 4, temperatures: []}",
]
ROWS = (1, 4, 16, 64, 128, 256)
CORES = {"ray::Worker": 0, "ray::Rank": 1}
ARMS: dict[str, tuple[list[str], Mapping[str, int]]] = {
    "sync, a core each": (["cluster.mode=sync", "threads=1"], CORES),
    "async 1, a core each": (["cluster.mode={name: async, cap: 1}", "threads=1"], CORES),
    "sync, both cores in turn": (["cluster.mode=sync", "threads=2"], {}),
}


def main() -> None:
    options = arguments(__doc__ or "", steps=40, repeats=2, work="runs/modes")
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    folders = {arm: Path(options.work) / arm.replace(",", "").replace(" ", "-") for arm in ARMS}
    for turn in range(options.repeats):
        for arm, (overrides, pinned) in ARMS.items():
            folder = folders[arm] / str(turn)
            if not (folder / "summary.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                run([*RECIPE, *overrides, f"steps={options.steps}", f"output={folder}", f"seed={turn}"], pinned, folder)
            found[arm].append(read(folder))
            print(f"{arm}: {found[arm][-1]}", file=sys.stderr)
    finish({"steps": options.steps, "arms": found, "predicted_step_s": predictions(folders, options)}, options)


def run(recipe: list[str], pinned: Mapping[str, int], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "rlcore.cli.main", "train", *recipe], stdout=log, stderr=log)
        while process.poll() is None:
            for name, core in pinned.items():
                pin(process.pid, name, core)
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"a run failed; see {log.name}")


def pin(driver: int, name: str, core: int) -> None:
    """Every thread of the driver's descendants of that name to one core."""
    for child in psutil.Process(driver).children(recursive=True):
        try:
            if child.cmdline()[0].startswith(name):
                for thread in child.threads():
                    os.sched_setaffinity(thread.id, {core})
        except (psutil.Error, ProcessLookupError, IndexError):  # it ended meanwhile
            continue


def read(folder: Path) -> dict[str, Any]:
    """Seconds of a step, by phase; accuracy; how lengths were spread. Start-up, evaluation and the first step, which makes what
    the others find, are not in the seconds."""
    rows, summary = steps_of(folder)[1:], json.loads((folder / "summary.json").read_text())
    seconds = {name: statistics.mean(row[f"time/{name}"] for row in rows) for name in ("step", "generate", "learn", "sync")}
    every = sorted(length for step in lengths(folder) for length in step)
    shares = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
    return {
        **{f"{name}_s": round(value, 3) for name, value in seconds.items()},
        **accuracy_after(summary),
        "accuracy_before": summary["accuracy_before"],
        "staleness_max": max(row.get("staleness/max", 0) for row in rows),
        "lengths": {name: every[int(share * (len(every) - 1))] for name, share in shares.items()},
    }


def lengths(folder: Path) -> list[list[int]]:
    """Of the completions of each step."""
    paths = sorted((folder / "ledger").glob("*.parquet"))
    return [parquet.read_table(path, columns=["length"])["length"].to_pylist() for path in paths]


# -- on paper ------------------------------------------------------------------------------------------------------------


def predictions(folders: Mapping[str, Path], options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step of each arm: the asynchronous one from what was measured in the synchronous one on the same cores."""
    each, turns, both = folders
    rounds = {each: rounds_on({0}), both: rounds_on({0, 1})}
    modes = {each: (each, Mode(name="sync")), turns: (each, Mode(name="async", cap=1)), both: (both, Mode(name="sync"))}
    predicted = {}
    for arm, (measured, mode) in modes.items():
        runs = [folders[measured] / str(turn) for turn in range(options.repeats)]
        rows = [row for folder in runs for row in steps_of(folder)[1:]]
        per_step = [step for folder in runs for step in lengths(folder)[1:]]
        rest = [row["time/step"] - row["time/generate"] - row["time/sync"] for row in rows]
        slope, base = statistics.linear_regression([sum(step) for step in per_step], rest)
        predicted[arm] = predict(
            [length for step in per_step for length in step],
            round_s=functools.partial(interpolated, rounds[measured]),
            learn_s=lambda tokens, base=base, slope=slope: base + slope * tokens,  # type: ignore[misc]
            sync_s=statistics.mean(row["time/sync"] for row in rows),
            workers=1,
            capacity=ROWS[-1],
            mode=mode,
            steps=options.steps,
            prompts=PROMPTS,
            samples=SAMPLES,
        ).step_s
    return {arm: round(seconds, 3) for arm, seconds in predicted.items()}


def rounds_on(cores: set[int]) -> dict[int, float]:
    """Seconds of a round of the vLLM engine on these cores, by rows; in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure_rounds, cores).result()


def measure_rounds(cores: set[int]) -> dict[int, float]:
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    from rlcore.models import ModelSpec, load_tokenizer
    from rlcore.toy import warmstart
    from rollout.engines.vllm import Vllm

    spec = ModelSpec(warmstart.resolve("toy:chain", 0))
    engine = Vllm(spec, load_tokenizer(spec.location), [])
    found = {rows: round_seconds(engine, rows) for rows in ROWS}
    engine.close()
    return found


def interpolated(rounds: Mapping[int, float], rows: int) -> float:
    return float(np.interp(rows, list(rounds), list(rounds.values())))


if __name__ == "__main__":
    main()
