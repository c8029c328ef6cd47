"""Kill a random process of a cluster run at a random moment, again and again, and see that the run ends as if nothing had
happened.

    python -m benchmarks.chaos --runs 20        writes docs/reliability.md; goes on where it was cut off

One run is left alone. Every other one loses a rollout worker, a learner rank or the driver by SIGKILL; a driver is started
again with --resume. Each must finish; every step's metrics must be those of the run that was left alone, to 1e-4; the accuracy
after training must lie in its interval; and no process and no shared memory may stay behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from benchmarks.common import accuracy_after, metrics_of, processor, steps_of

RECIPE = [
    "quickstart",
    "cluster/cpu",
    "steps=12",
    "checkpoint.every=3",
    "rollout.prompts_per_step=16",
    "eval={every: 12, data: {name: chain, split: test, count: 100}, samples: 4, temperatures: []}",
]
TOLERANCE = 1e-4
KINDS = {"worker": "ray::Worker", "rank": "ray::Rank"}  # how the processes call themselves
MARK = "RLCORE_CHAOS_RUN"  # in the environment of every process of a run
STARTING = 4  # the start-up counts as so many steps where the moment of a kill is drawn
PATIENCE_S = 60  # for what is left of a run to end by itself


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/chaos"), help="where the runs and what came of them are kept")
    parser.add_argument("--page", type=Path, default=Path("docs/reliability.md"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    whole = kept(options.work / "unbroken.json", lambda: unbroken(options.work / "unbroken"))
    rows = []
    for number in range(1, options.runs + 1):
        folder = options.work / f"run-{number}"
        rng = random.Random(f"{options.seed}/{number}")
        rows.append(kept(folder.with_suffix(".json"), lambda: struck(folder, rng, whole)))  # noqa: B023 (called at once)
        print(f"{number}: {rows[-1]}", file=sys.stderr)
    options.page.write_text(page(whole, rows, options))
    sys.exit(0 if all(passed(row, whole) for row in rows) else 1)


def kept(path: Path, make: Any) -> Any:
    if not path.exists():
        path.write_text(json.dumps(make()))
    return json.loads(path.read_text())


def unbroken(folder: Path) -> dict[str, Any]:
    started = time.monotonic()
    assert start(folder, uuid4().hex).wait() == 0
    wall_s, rows = time.monotonic() - started, steps_of(folder)
    trained_s = sum(row["time/step"] for row in rows)
    times = {"wall_s": wall_s, "start_s": wall_s - trained_s, "step_s": trained_s / len(rows), "steps": len(rows)}
    return {"folder": str(folder), **times, **accuracy(folder)}


def struck(folder: Path, rng: random.Random, whole: Mapping[str, Any]) -> dict[str, Any]:
    """A run that was not over when its moment came: one that was is made again, with another."""
    while (row := broken(folder, rng, whole))["finished"] and not row["killed"]:
        shutil.rmtree(folder)
    return row


def broken(folder: Path, rng: random.Random, whole: Mapping[str, Any]) -> dict[str, Any]:
    """A run with one kill, and everything that can be seen of it afterwards."""
    shared, mark, started = shared_memory(), uuid4().hex, time.monotonic()
    kind, moment = rng.choice(["worker", "rank", "driver"]), rng.uniform(-STARTING, whole["steps"])
    driver, killed, resumes = start(folder, mark), None, 0
    while True:
        if killed is None and has_come(moment, started, folder, whole) and strike(kind, driver, mark, rng):
            killed = {"at_s": time.monotonic() - started, "step": step(folder)}
        status = driver.poll()
        if status is None:
            time.sleep(0.2)
        elif status == 0:
            break
        elif kind == "driver" and killed and not resumes:
            driver, resumes = start(folder, mark), resumes + 1
        else:
            return {"kind": kind, "killed": killed, "finished": False, "status": status}
    return {
        "kind": kind,
        "killed": killed,  # null where the run was over before
        "finished": True,
        "resumes": resumes,
        "wall_s": time.monotonic() - started,
        "orphans": orphans(mark),
        "shared_memory": sorted(shared_memory() - shared),
        **compared(folder, Path(whole["folder"])),
        **accuracy(folder),
    }


def has_come(moment: float, started: float, folder: Path, whole: Mapping[str, Any]) -> bool:
    """Whether a run is at its moment: below 0 in the start-up, from 0 on in steps of training."""
    if moment < 0:
        return time.monotonic() - started >= (1 + moment / STARTING) * whole["start_s"]
    if step(folder) < int(moment):
        return False
    time.sleep(moment % 1 * whole["step_s"])
    return True


def start(folder: Path, mark: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "rlcore.cli.main", "train", *RECIPE, f"output={folder}", "--resume"]
    log = folder.with_suffix(".log").open("a")
    return subprocess.Popen(command, env={**os.environ, MARK: mark}, stdout=log, stderr=log)


def strike(kind: str, driver: subprocess.Popen, mark: str, rng: random.Random) -> bool:
    """Kill a process of that kind; False where there is none yet."""
    if kind == "driver":
        victims = [driver.pid] if driver.poll() is None else []
    else:
        victims = [process.pid for process in marked(mark) if (process.cmdline() or [""])[0].startswith(KINDS[kind])]
    if not victims:
        return False
    os.kill(rng.choice(victims), signal.SIGKILL)
    return True


def marked(mark: str) -> Iterator[psutil.Process]:
    """Every living process of a run, whoever its parent is by now."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:  # it ended meanwhile, or is another user's
            continue


def orphans(mark: str) -> list[str]:
    """What still lives when a run is over, after some patience."""
    until = time.monotonic() + PATIENCE_S
    while (left := [process.name() for process in marked(mark)]) and time.monotonic() < until:
        time.sleep(1)
    return left


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def step(folder: Path) -> int:
    """The last step that the run has written."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def compared(folder: Path, whole: Path) -> dict[str, Any]:
    """The largest difference of any metric of any step, and where."""
    found, expected = read(folder), read(whole)
    if [sorted(row) for row in found] != [sorted(row) for row in expected]:
        return {"rows": len(found), "worst": None, "where": "the rows differ"}
    differences = {
        (row["step"], name): abs(value - row[name])
        for other, row in zip(found, expected, strict=True)
        for name, value in other.items()
    }
    where = max(differences, key=differences.__getitem__)
    return {"rows": len(found), "worst": differences[where], "where": f"{where[1]}, step {where[0]}"}


def read(folder: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in row.items() if not k.startswith("time/") and k != "tokens_per_second"} for row in metrics_of(folder)
    ]


def accuracy(folder: Path) -> dict[str, float]:
    return accuracy_after(json.loads((folder / "summary.json").read_text()))


def passed(row: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    clean = row["finished"] and not row["orphans"] and not row["shared_memory"]
    same = clean and row["worst"] is not None and row["worst"] <= TOLERANCE
    return bool(same and whole["low"] <= row["accuracy"] <= whole["high"])


def page(whole: Mapping[str, Any], rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    kinds = ", ".join(f"{sum(r['kind'] == k for r in rows)} {k}s" for k in ("worker", "rank", "driver"))
    command = f"python -m benchmarks.chaos --runs {options.runs} --seed {options.seed}"
    intact = sum(passed(row, whole) for row in rows)
    lines = f"""# Reliability

Written by `{command}` on {processor()}, {os.cpu_count()} cores.

Each run is `rlcore train {" ".join(RECIPE[:2])}` with {", ".join(f"`{key}`" for key in RECIPE[2:])}: two vLLM workers and two
DeepSpeed ranks on a local Ray cluster. One process of it, chosen at random, is killed with SIGKILL at a random moment: in a
random step, or in the start-up, which counts as {STARTING}; a killed driver is started again with `--resume`.

- {sum(row["finished"] for row in rows)} of {len(rows)} runs finished ({kinds} killed);
- {intact} of them have the metrics of the run that was left alone, to {TOLERANCE:g} at every step, and an accuracy after
  training within its 95 % interval ({whole["low"]:.1%} to {whole["high"]:.1%}), and left no process and no shared memory.

The run that was left alone took {whole["wall_s"]:.0f} s.

| run | killed | at | after step | resumed by hand | wall | largest difference of a metric | accuracy | left behind |
|---|---|---|---|---|---|---|---|---|""".splitlines()
    for number, row in enumerate(rows, 1):
        if not row["finished"]:
            lines.append(f"| {number} | {row['kind']} | | | | | **did not finish** (status {row['status']}) | | |")
            continue
        at, after = f"{row['killed']['at_s']:.0f} s", row["killed"]["step"]
        worst = row["where"] if row["worst"] is None else f"{row['worst']:.1e} ({row['where']})"
        left = ", ".join([*row["orphans"], *row["shared_memory"]]) or "nothing"
        wall, reached = f"{row['wall_s']:.0f} s", f"{row['accuracy']:.1%}"
        cells = [number, row["kind"], at, after, row["resumes"], wall, worst, reached, left]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
