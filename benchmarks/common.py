"""What the benchmarks share: fixed-length models, turns of two sides in processes of their own, medians, peak memory, --json.

These machines are noisy: the sides take turns within one run, and what counts is the ratio of their medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # the idle side must not spin on the cores of the other

Side = Callable[[], "Measure"]
Measure = Callable[[], Mapping[str, float]]  # one turn: seconds by name, and bytes under names that end in _bytes


def arguments(description: str, **defaults: Any) -> argparse.Namespace:
    """The command line: an option for each default, `--json FILE` and `--threads`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each side")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    return options


def finish(result: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Print the result and, with --json, write it, together with what it was measured on."""
    machine = {
        "cpu": processor(),
        "threads": options.threads,
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "rlcore")},
    }
    text = json.dumps({**result, "machine": machine}, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


class Turns:
    """Sides that run in processes of their own, so that their memory can be told apart, and take turns."""

    def __init__(self, sides: Mapping[str, Side]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections: dict[str, Connection] = {}
        self._processes = []
        for name, side in sides.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(side, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the connection
            self._connections[name] = ours
            self._processes.append(process)
            self._receive(name)  # it is ready; one at a time, as loading is heavy

    def run(self, warmup: int, repeats: int) -> dict[str, dict[str, float]]:
        """The median over `repeats` turns of everything each side measures, after `warmup` turns that do not count."""
        seen: dict[str, list[Mapping[str, float]]] = {name: [] for name in self._connections}
        for turn in range(warmup + repeats):
            for name, connection in self._connections.items():
                connection.send("go")
                measured = self._receive(name)
                if turn >= warmup:
                    seen[name].append(measured)
                print(f"{name:>14}  turn {turn + 1}  {_readable(measured)}", file=sys.stderr)
        return {name: medians(measured) for name, measured in seen.items()}

    def _receive(self, name: str) -> Any:
        try:
            return self._connections[name].recv()
        except EOFError:
            raise SystemExit(f"the side {name!r} ended early; its error stands above") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections.values():
            connection.close()
        for process in self._processes:
            process.join(timeout=20)
            process.kill()


def _serve(side: Side, connection: Connection) -> None:
    measure = side()
    connection.send("ready")
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        connection.send(dict(measure()))


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_of(folder: Path) -> list[dict[str, float]]:
    """Those of them that are steps of training, not evaluations."""
    return [row for row in metrics_of(folder) if "time/step" in row]


def accuracy_after(summary: Mapping[str, Any]) -> dict[str, float]:
    """A run's held-out accuracy after training, with its 95 % interval."""
    return {name: summary[f"accuracy_after{end}"] for name, end in (("accuracy", ""), ("low", "_low"), ("high", "_high"))}


def medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


class Memory:
    """This process's peak memory above what lies there anyway: what it has loaded when this is made, and gradients and AdamW's
    two moments for the parameters to be trained. Linux."""

    def __init__(self, model: Any) -> None:
        self._given = status("VmRSS") + 3 * sum(p.numel() * p.element_size() for p in model.parameters())

    def forget(self) -> None:
        """Start a phase."""
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is now what is in use

    def mark(self, into: dict[str, float], name: str) -> None:
        """End a phase: store its peak as `NAME_bytes`, and start the next."""
        into[f"{name}_bytes"] = status("VmHWM") - self._given
        self.forget()


def timed(into: dict[str, float], name: str) -> AbstractContextManager[None]:
    """Add the seconds that the block takes to `into[name]`."""
    import time

    @contextmanager
    def measure() -> Any:
        start = time.perf_counter()
        yield
        into[name] = into.get(name, 0.0) + time.perf_counter() - start

    return measure()


def endless(model: str, folder: Path) -> Path:
    """A copy of a model that never ends a completion: its end token lies outside its vocabulary, so that every completion has
    exactly the longest length, on any side and in any step."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlcore import models

    location = models.locate(model)
    loaded = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(location)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.add_special_tokens({"eos_token": "<never>"})
    never = tokenizer.convert_tokens_to_ids("<never>")
    assert never >= loaded.config.vocab_size
    tokenizer.chat_template = None
    loaded.config.eos_token_id = loaded.generation_config.eos_token_id = never
    loaded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def mean_of_digits(completions: Sequence[str], **_: object) -> list[float]:
    """A reward in TRL's form for both sides: the share of digits."""
    return [sum(map(str.isdigit, text)) / max(1, len(text)) for text in completions]


def status(field: str, pid: int | str = "self") -> int:
    """Bytes that /proc says of a process. Linux."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _readable(measured: Mapping[str, float]) -> str:
    return "  ".join(
        f"{name.removesuffix('_bytes')} {value / 2**20:.0f} MiB" if name.endswith("_bytes") else f"{name} {value:.3f} s"
        for name, value in measured.items()
    )
