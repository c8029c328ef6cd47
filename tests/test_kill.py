"""The quickstart, killed at ten random moments and resumed each time, ends as if nothing had happened, to the bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

KILLS = 10


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "rlcore.cli.main", "train", "quickstart", f"output={folder}", "--resume"]


def clockless(values: dict) -> dict:
    return {k: v for k, v in values.items() if not k.startswith("time/") and k not in ("tokens_per_second", "wall_s")}


def metrics(folder: Path) -> list[dict]:
    return [clockless(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_kills_change_nothing(tmp_path: Path) -> None:
    """The unbroken run also makes the toy, so that the kills fall into the run itself. Ten kills take two or three runs."""
    unbroken = tmp_path / "unbroken"
    subprocess.run(command(unbroken), check=True)
    rng, kills, broken = random.Random(0), 0, 0
    while kills < KILLS:
        broken += 1
        folder = tmp_path / f"broken-{broken}"
        while not (folder / "summary.json").exists():
            process = subprocess.Popen(command(folder))
            try:
                assert process.wait(timeout=rng.uniform(6, 40)) == 0
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        compare(folder, unbroken)
    print(f"{kills} kills in {broken} runs")


def compare(broken: Path, unbroken: Path) -> None:
    assert metrics(broken) == metrics(unbroken)
    summaries = [clockless(json.loads((folder / "summary.json").read_text())) for folder in (broken, unbroken)]
    assert summaries[0] == summaries[1]
    weights = "checkpoints/step-50/policy/learner.safetensors"
    assert (broken / weights).read_bytes() == (unbroken / weights).read_bytes()
    for table in (unbroken / "ledger").iterdir():
        assert pq.read_table(broken / "ledger" / table.name).equals(pq.read_table(table))
