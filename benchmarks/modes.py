"""Synchronous and asynchronous training on two cores: wall-clock time to the same accuracy, on a workload with long-tailed
lengths.

    python -m benchmarks.modes --json FILE        goes on where it was cut off

Two arms have the rollout worker on core 0 and the learner on core 1: synchronous, where each waits for the other, and
asynchronous with staleness cap 1, where both work. In the third both cores serve each phase in turn. Most completions are some
20 tokens long; a few per cent ramble on to the limit of 256, and a step waits for them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import accuracy_after, arguments, finish

RECIPE = [
    "quickstart",
    "cluster/cpu",
    "cluster.workers=1",
    "cluster.ranks=1",
    "rollout.max_new_tokens=256",
    "algorithm.correction=token_tis",
    "eval={every: 1000, data: {name: chain, split: test, count: 300}, samples: 4, temperatures: []}",
]
ARMS: dict[str, tuple[list[str], Mapping[str, int] | None]] = {
    "synchronous, a core each": (["cluster.mode=sync", "threads=1"], {"ray::Worker": 0, "ray::Rank": 1}),
    "asynchronous, a core each": (["cluster.mode={name: async, cap: 1}", "threads=1"], {"ray::Worker": 0, "ray::Rank": 1}),
    "synchronous, both cores in turn": (["cluster.mode=sync", "threads=2"], None),
}


def main() -> None:
    options = arguments(__doc__.split("\n")[0], steps=40, repeats=2, work="runs/modes")
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for turn in range(options.repeats):
        for arm, (overrides, pinned) in ARMS.items():
            folder = Path(options.work) / f"{arm.replace(', ', '-').replace(' ', '-')}-{turn}"
            if not (folder / "summary.json").exists():
                run([*RECIPE, *overrides, f"steps={options.steps}", f"output={folder}", f"seed={turn}"], pinned, folder)
            found[arm].append(read(folder))
            print(f"{arm}: {found[arm][-1]}", file=sys.stderr)
    finish({"steps": options.steps, "arms": found}, options)


def run(recipe: list[str], pinned: Mapping[str, int] | None, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "rlcore.cli.main", "train", *recipe], stdout=log, stderr=log)
        while process.poll() is None:
            for name, core in (pinned or {}).items():
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
    """Seconds of training (start-up and evaluation are not in them), by phase; accuracy; how lengths were spread."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "time/step" in row]
    summary = json.loads((folder / "summary.json").read_text())
    seconds = {name: sum(row[f"time/{name}"] for row in rows[1:]) for name in ("step", "generate", "learn", "sync")}
    return {
        **{f"{name}_s": round(value, 2) for name, value in seconds.items()},
        **accuracy_after(summary),
        "accuracy_before": summary["accuracy_before"],
        "staleness_max": max(row.get("staleness/max", 0) for row in rows),
        "lengths": lengths(folder),
    }


def lengths(folder: Path) -> dict[str, float]:
    import pyarrow.parquet as pq

    tables = [pq.read_table(path, columns=["length"]) for path in sorted((folder / "ledger").glob("*.parquet"))]
    every = sorted(value for table in tables for value in table["length"].to_pylist())
    return {
        name: every[int(share * (len(every) - 1))]
        for name, share in (("median", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1))
    }


if __name__ == "__main__":
    main()
