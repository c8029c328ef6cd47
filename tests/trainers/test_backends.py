"""One learner on plain torch and on two DeepSpeed ranks at every ZeRO stage: the same numbers, the same checkpoints.

The ranks are real processes joined by gloo; `ranks_worker.py` is what they do.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlcore.batch import TrainingBatch
from rlcore.run.metrics import Max, Mean, Metrics, merge, values

FULL = ["update={minibatches: 2, tokens_per_microbatch: 40}", "optimizer.learning_rate=1e-3"]
LORA = ["lora={rank: 4}", "algorithm.kl={estimator: k3, coefficient: 0.1}", *FULL]
TIGHT = ["update={minibatches: 2, tokens_per_microbatch: 40, gradient_checkpointing: true, logits_chunk: 7}", FULL[1]]
STAGES = [0, 1, 2, 3]


def case(name: str, zero: int | None, overrides: list[str], steps: tuple[int, int] = (0, 5), load: str = "") -> dict[str, Any]:
    return {"name": name, "zero": zero, "overrides": overrides, "steps": steps, "load": load}


CASES = [
    case("torch", None, FULL),
    case("half-torch", None, FULL, (0, 2)),
    *(case(f"zero{stage}", stage, FULL) for stage in STAGES),
    *(case(f"zero{stage}-from-torch", stage, FULL, (2, 5), "half-torch") for stage in STAGES),
    *(case(f"half-zero{stage}", stage, FULL, (0, 2)) for stage in (2, 3)),
    case("lora-torch", None, LORA),
    *(case(f"lora-zero{stage}", stage, LORA) for stage in (1, 3)),
    case("adapter-zero3", 3, ["lora={rank: 4, serve: adapter}", *LORA[1:]]),
    case("adapter-torch", None, ["lora={rank: 4, serve: adapter}", *LORA[1:]]),
    case("tight-zero3", 3, TIGHT),
    case("bf16-zero3", 3, ["dtype=bfloat16", *FULL]),
    case("bf16-torch", None, ["dtype=bfloat16", *FULL]),
]
BACK = [case(f"torch-from-zero{stage}", None, FULL, (2, 5), f"half-zero{stage}") for stage in (2, 3)]


@pytest.fixture(scope="module")
def done(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every case has left its results."""
    folder = tmp_path_factory.mktemp("ranks")
    shutil.copytree(tiny, folder / "model")
    torch.save(batches(), folder / "batches.pt")
    (folder / "cases.json").write_text(json.dumps(CASES))
    worker = [sys.executable, str(Path(__file__).with_name("ranks_worker.py")), str(folder)]
    root = str(Path(__file__).parent.parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "LOCAL_RANK": "0"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": "2"}

    def start(rank: int, world: int) -> subprocess.Popen:
        command = [*worker, str(rank), str(world)]
        return subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)

    def finish(*processes: subprocess.Popen) -> None:
        try:
            for process in processes:
                _, said = process.communicate(timeout=200)
                assert process.returncode == 0, said[-3000:]
        finally:
            for process in processes:
                process.kill()

    (folder / "cases.json").write_text(json.dumps([c for c in CASES if c["zero"] is None]))
    finish(start(0, 1))
    (folder / "cases.json").write_text(json.dumps([c for c in CASES if c["zero"] is not None]))
    finish(start(0, 2), start(1, 2))
    (folder / "cases.json").write_text(json.dumps(BACK))
    finish(start(0, 1))
    return folder


def batches() -> list[TrainingBatch]:
    """Five steps of nine completions of other lengths, one of them with a single completion: fewer than ranks."""
    from tests.conftest import batch_of

    made = []
    for seed in range(5):
        lengths = [1 + (7 * i + 3 * seed) % 13 for i in range(1 if seed == 3 else 9)]
        graded = batch_of([float(i % 2) for i in range(len(lengths))], [i // 3 for i in range(len(lengths))], lengths, seed)
        advantages = torch.randn(graded.tokens.shape, generator=torch.Generator().manual_seed(seed)) * graded.present
        made.append(TrainingBatch(graded, advantages, graded.rollout_logprobs))
    return made


def tensors(done: Path, name: str, file: str) -> dict[str, Tensor]:
    return load_file(done / name / file)


def metrics(done: Path, name: str) -> list[dict[str, float]]:
    """What the driver makes of the ranks' reports."""
    reports = [json.loads(path.read_text()) for path in sorted(done.glob(f"{name}.metrics.*.json"))]

    def read(step: dict[str, list[float]]) -> Metrics:
        return {key: Max(*value) if len(value) == 1 else Mean(*value) for key, value in step.items()}

    return [values(merge(read(report) for report in step)) for step in zip(*reports, strict=True)]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], within: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name != "rng":
            torch.testing.assert_close(
                found[name], tensor, atol=within, rtol=within, msg=lambda text, name=name: f"{name}: {text}"
            )


ALIKE = [
    *((f"zero{stage}", "torch") for stage in STAGES),
    *((f"zero{stage}-from-torch", "torch") for stage in STAGES),
    *((f"torch-from-zero{stage}", "torch") for stage in (2, 3)),
    *((f"lora-zero{stage}", "lora-torch") for stage in (1, 3)),
    ("adapter-zero3", "adapter-torch"),
    ("tight-zero3", "torch"),
]


@pytest.mark.parametrize(("name", "expected"), ALIKE)
def test_ranks_give_the_parameters_moments_and_weights_of_one_process(done: Path, name: str, expected: str) -> None:
    """After five steps of two mini-batches; also where some of them were done elsewhere, and the rest from their checkpoint."""
    for file in ("learner.safetensors", "model/model.safetensors", "sent.safetensors", "logprobs.safetensors"):
        assert_same(tensors(done, name, file), tensors(done, expected, file), within=1e-5)


@pytest.mark.parametrize(("name", "expected"), ALIKE)
def test_ranks_report_the_metrics_of_one_process(done: Path, name: str, expected: str) -> None:
    found = metrics(done, name)
    for step, wanted in zip(found, metrics(done, expected)[-len(found) :], strict=True):
        assert step.keys() == wanted.keys()
        assert step == pytest.approx(wanted, abs=1e-5, rel=1e-4)


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3", "lora-zero3"])
def test_what_ranks_save_is_a_plain_checkpoint(done: Path, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(done / name / "model")
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    assert_same(parameters, tensors(done, name, "sent.safetensors"), within=0)


def test_bfloat16_passes_under_zero3_learn_what_those_of_one_process_do(done: Path) -> None:
    """Up to the rounding of bfloat16: five steps move the parameters by some 5e-3."""
    found, start = tensors(done, "bf16-zero3", "sent.safetensors"), AutoModelForCausalLM.from_pretrained(done / "model")
    expected, before = tensors(done, "bf16-torch", "sent.safetensors"), dict(start.named_parameters())
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    moved = torch.cat([(tensor.float() - before[name].detach()).flatten() for name, tensor in expected.items()])
    apart = torch.cat([(tensor.float() - expected[name].float()).flatten() for name, tensor in found.items()])
    assert apart.norm() < 0.2 * moved.norm()
