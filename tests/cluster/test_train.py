"""A recipe on a cluster of this machine: real Ray, real DeepSpeed ranks, workers with the transformers engine (vLLM is tried in
tests/rollout and by `python -m benchmarks.chaos`). Each run is a process of its own, as a user's is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.trainers.test_loop import metrics, without_seconds

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture
def start(tiny: Path, tmp_path: Path) -> Callable[..., tuple[subprocess.Popen, Path]]:
    """`rlcore train` of the quickstart recipe, shrunk, with these overrides."""

    def run(name: str, *overrides: str) -> tuple[subprocess.Popen, Path]:
        folder = tmp_path / name
        small = [
            f"model={tiny}",
            f"output={folder}",
            "threads=1",
            "steps=5",
            "data.count=60",
            "rollout={prompts_per_step: 6, samples: 4, max_new_tokens: 16}",
            "rewards={name: 'tests.trainers.test_loop:Digits'}",
            "checkpoint.every=2",
            "eval=null",
        ]
        command = [sys.executable, "-m", "rlcore.cli.main", "train", "quickstart", *small, *overrides, "--resume"]
        log = (tmp_path / f"{name}.log").open("a")
        return subprocess.Popen(command, stdout=log, stderr=log), folder

    return run


def finished(started: tuple[subprocess.Popen, Path]) -> list[dict[str, float]]:
    """The metrics of a run that ends well, without what depends on the clock."""
    process, folder = started
    try:
        assert process.wait(timeout=240) == 0, folder.with_suffix(".log").read_text()[-3000:]
    finally:
        process.kill()
    return metrics(folder)


def assert_alike(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-4)


@pytest.fixture
def local(start: Callable) -> list[dict[str, float]]:
    return finished(start("local"))


CLUSTER = "cluster={workers: 1, ranks: 2, zero: 3, bucket_mb: 0.05, max_restarts: 1}"


def test_synchronous_steps_are_those_of_one_process(start: Callable, local: list[dict[str, float]]) -> None:
    """Every metric of every step; also where a rank is killed in the middle, and the run starts again from its checkpoint by
    itself."""
    assert_alike(finished(start("cluster", CLUSTER)), local)
    process, folder = start("killed", CLUSTER)
    while not (folder / "checkpoints" / "step-2").exists():
        assert process.poll() is None, folder.with_suffix(".log").read_text()[-3000:]
        time.sleep(0.05)
    ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if "".join(p.cmdline()).startswith("ray::Rank")]
    os.kill(ranks[-1].pid, signal.SIGKILL)
    assert_alike(finished((process, folder)), local)
    log = folder.with_suffix(".log").read_text()
    died = r"warning: .*learner rank \d died \(killed, out of memory, or crashed\).*; starting again from step \d"
    assert re.search(died + r" \(restart 1 of 1\)", log), log
    assert "raylet" not in log


def test_compressed_rollouts_on_ranks_are_those_of_one_process(start: Callable) -> None:
    """Every rank fits the same codes, and puts the reconstruction in the place of its own weights for the probe."""
    mvq = "rollout.compression={methods: [{name: magnitude, pattern: [4, 8]}, {name: mvq, codes: 32}], after: 1}"
    compressed = [mvq, "rollout.compression.guard.kl=null", "algorithm.correction=token_tis", "steps=4"]
    alone = without_seconds(finished(start("local", *compressed)))
    assert [row["compression/on"] for row in alone] == [0, 1, 1, 1]
    assert_alike(without_seconds(finished(start("cluster", *compressed, CLUSTER, "cluster.zero=2"))), alone)


@pytest.mark.parametrize("mode", ["one_step_off", "{name: async, cap: 2}"])
def test_the_other_modes_run_and_say_how_stale_they_were(start: Callable, mode: str) -> None:
    rows = finished(start("run", CLUSTER, f"cluster.mode={mode}", "cluster.workers=2", "algorithm.correction=token_tis"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert max(row["staleness/max"] for row in rows) == (1 if mode == "one_step_off" else 2)
    assert all(row["parity"] < 1e-5 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("critic", ["{learning_rate: 1.0e-3}", "{shared: true}"])
def test_a_critic_learns_on_ranks_what_it_does_in_one_process(start: Callable, critic: str) -> None:
    """One of its own, on ranks of its own; and one on the policy's body."""
    ppo = ["algorithms/ppo", f"algorithm.critic={critic}", "steps=3", "optimizer.learning_rate=1.0e-3"]
    local = finished(start("local", *ppo))
    assert all(row["critic/error"] > 0 for row in local)
    assert_alike(finished(start("cluster", *ppo, CLUSTER)), local)


@pytest.mark.slow
def test_an_implicit_reward_learns_on_ranks_what_it_does_in_one_process(start: Callable) -> None:
    """On ranks of its own, its reference beside it; what it pays from the second step on depends on what it learned."""
    paid = "rewards=[{name: 'tests.trainers.test_loop:Even'}, {name: prime, learning_rate: 1.0e-3, beta: 1}]"
    prime = [paid, "algorithm.advantage=prime", "steps=3", "optimizer.learning_rate=1.0e-3"]
    local = finished(start("local", *prime))
    assert [bool(row["reward/prime"]) for row in local] == [False, True, True]
    assert_alike(finished(start("cluster", *prime, CLUSTER)), local)


JUDGED = 'rewards=[answer, {name: process, judge: {name: chain_truth}, separator: "\\n"}]'


@pytest.mark.slow  # the actors themselves: tests/rewards/test_service.py
def test_judges_in_processes_of_their_own_pay_what_one_here_does(start: Callable) -> None:
    local = finished(start("local", JUDGED, "steps=2"))
    assert all(row["reward/process"] for row in local)
    assert_alike(finished(start("cluster", JUDGED, "steps=2", CLUSTER, "cluster={judges: 2, ranks: 1}")), local)


def test_more_gpus_than_there_are_is_an_error_at_once(start: Callable) -> None:
    gpus = "cluster={workers: 2, gpus_per_worker: 64, judges: 4, gpus_per_judge: 1}"
    process, folder = start("gpus", gpus, JUDGED, "device=cpu")
    assert process.wait(timeout=300) == 1
    assert "the recipe's cluster asks for 132 GPUs, and the Ray cluster has " in folder.with_suffix(".log").read_text()
