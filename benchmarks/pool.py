"""What the pool costs: tokens per second through a pool of one worker against the same vLLM called bare, and a weight sync
through it against a plain copy of the same bytes in memory.

    python -m benchmarks.pool --json FILE

`rollouts` has the workloads of `benchmarks/sampler.py` with vLLM. `sync` sends SmolLM2-135M in float32, in buckets that hold
its largest tensor; a peak is what a side's memory, shared memory included, rises by above what it has between syncs.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common import Measure, arguments, finish, medians, status, timed
from benchmarks.sampler import bare_vllm, compare, requests


class Pooled:
    """The side that asks the pool. It holds the cluster for as long as it lives."""

    def __init__(self, model: str, prompts: int, samples: int, length: int, threads: int) -> None:
        from rlcore.cluster.connect import connected
        from rlcore.models import load_tokenizer

        self._ending = ExitStack()
        self._ending.enter_context(connected("local"))
        self._pool = make(model, threads)
        self._asked = requests(load_tokenizer(model), prompts, samples, length)

    def __call__(self) -> Mapping[str, float]:
        result: dict[str, float] = {}
        with timed(result, "generate"):
            completions = self._pool.generate(self._asked)
        result["tokens"] = sum(len(c.token_ids) for c in completions)
        return result


def make(model: str, threads: int) -> Any:
    from rlcore.models import ModelSpec, load_tokenizer
    from rollout.engines.vllm import Vllm
    from rollout.pool import Pool

    tokenizer = load_tokenizer(model)
    engine = functools.partial(Vllm, ModelSpec(model), tokenizer, [tokenizer.eos_token_id])
    environment = {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": os.environ["GOMP_SPINCOUNT"]}
    return Pool(engine, tokenizer, workers=1, dtype="float32", environment=environment)


def sync(model: str, repeats: int, threads: int) -> dict[str, Any]:
    """Seconds of a sync, of a plain copy of the bytes, and of their checksums, which each side makes."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlcore.cluster.connect import connected
    from rollout.sync import checksum, weight_update

    torch.set_num_threads(threads)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tensors = {name: parameter.detach() for name, parameter in loaded.named_parameters()}
    bucket = max(tensor.nbytes for tensor in tensors.values())
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    target = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    rows = []
    with connected("local"), ExitStack() as ending:
        pool = make(model, threads)
        ending.callback(pool.close)
        receiver = worker_of(pool)
        for turn in range(repeats + 1):
            row: dict[str, float] = {}
            # Made a tensor at a time, as those of a learner that gathers or merges them are.
            update = weight_update(turn + 1, shapes, lambda: ((n, t.clone()) for n, t in tensors.items()), bucket_bytes=bucket)
            watched = {"sender": Peak(os.getpid()), "receiver": Peak(receiver)}
            with timed(row, "sync"):
                pool.sync(update)
            row |= {f"{side}_bytes": peak.rise() for side, peak in watched.items()}
            with timed(row, "copy"):
                copy(tensors, target)
            with timed(row, "checksums"):
                for tensor in tensors.values():
                    checksum(tensor)
            if turn:  # the first makes what later ones find
                rows.append(row)
                print(row, file=sys.stderr)
    found = medians(rows)
    return {
        "model_bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "bucket_bytes": bucket,
        **found,
        "buckets": {side: round(found[f"{side}_bytes"] / bucket, 2) for side in ("sender", "receiver")},
    }


def copy(tensors: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        target[name].copy_(tensor)


def worker_of(pool: Any) -> int:
    import ray

    pid: int = ray.get(pool._members[0].actor.__ray_call__.remote(lambda _: os.getpid()))
    return pid


class Peak:
    """How far a process's resident memory rises from now on. Linux."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the high-water mark is now what is in use
        self.before = status("VmRSS", pid)

    def rise(self) -> int:
        return status("VmHWM", self.pid) - self.before


def main() -> None:
    options = arguments(__doc__ or "", toy="toy:chain", small="smollm2-135m", warmup=2, repeats=7)
    from rlcore import models
    from rlcore.toy import warmstart

    sides: dict[str, Callable[..., Measure]] = {"pool": Pooled, "vllm": bare_vllm}
    small = models.locate(options.small)
    workloads = {
        "toy": dict(model=warmstart.resolve(options.toy, 0), prompts=32, samples=8, length=64),
        "small": dict(model=small, prompts=8, samples=8, length=64),
    }
    result: dict[str, Any] = {"rollouts": {}}
    for name, settings in workloads.items():
        print(name, file=sys.stderr)
        result["rollouts"][name] = compare(sides, options, **settings)
    time.sleep(1)
    result["sync"] = sync(small, options.repeats, options.threads)
    finish(result, options)


if __name__ == "__main__":
    main()
