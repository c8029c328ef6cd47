"""One learner on plain torch and on two DeepSpeed ranks at every ZeRO stage: the same numbers, the same checkpoints.

The ranks are real processes joined by gloo; `ranks_worker.py` is what they do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rlcore.models import ModelSpec
from rlcore.plugins import names
from rlcore.run.metrics import Max, Mean, Metrics, merge, values
from rlcore.types import Request, Sampling
from rollout.engines.transformers import Transformers
from rollout.engines.vllm import Vllm
from tests.conftest import REPOSITORY
from tests.trainers import ranks_worker

pytestmark = pytest.mark.xdist_group("ranks")  # what they look at is made once

FULL = [
    "update={minibatches: 2, tokens_per_microbatch: 40}",
    "optimizer={learning_rate: 2e-3, warmup_steps: 3, schedule: cosine}",
]
LORA = ["lora={rank: 4}", "algorithm.kl={estimator: k3, coefficient: 0.1}", *FULL]
ADAPTER = ["lora={rank: 4, serve: adapter}", *LORA[1:]]
OUTLIERS = ["quantised_base={name: rtn, run: 32}", "outliers={share: 0.02, train_norms: true}", *LORA[1:]]
TIGHT = ["update={minibatches: 2, tokens_per_microbatch: 40, gradient_checkpointing: true, logits_chunk: 7}", FULL[1]]
STAGES = [0, 1, 2, 3]
LOSSES = sorted(names("trainers.losses"))


def of_loss(loss: str) -> list[str]:
    """With everything that has to know a whole mini-batch."""
    return [f"algorithm={{loss: {loss}, imitation: 0.1, entropy: {{bonus: 0.01, top_quantile: 0.6}}}}", *FULL]


def case(
    name: str,
    zero: int | None,
    overrides: list[str],
    steps: tuple[int, int] = (0, 5),
    load: str = "",
    offload: bool = False,
) -> dict[str, Any]:
    return {"name": name, "zero": zero, "overrides": overrides, "steps": steps, "load": load, "offload": offload}


CASES = [
    case("torch", None, FULL),
    case("half-torch", None, FULL, (0, 2)),
    case("lora-torch", None, LORA),
    case("adapter-torch", None, ADAPTER),
    case("outliers-torch", None, OUTLIERS),
    case("bf16-torch", None, ["dtype=bfloat16", *FULL]),
    *(case(f"zero{stage}", stage, FULL) for stage in STAGES),
    *(case(f"zero{stage}-from-torch", stage, FULL, (2, 5), "half-torch") for stage in STAGES),
    *(case(f"half-zero{stage}", stage, FULL, (0, 2)) for stage in (2, 3)),
    case("offload-zero2", 2, FULL, offload=True),
    case("offload-zero3-from-torch", 3, FULL, (2, 5), "half-torch", offload=True),
    *(case(f"lora-zero{stage}", stage, LORA) for stage in (1, 3)),
    case("adapter-zero3", 3, ADAPTER),
    *(case(f"outliers-zero{stage}", stage, OUTLIERS) for stage in (1, 3)),
    case("tight-zero3", 3, TIGHT),
    case("bf16-zero3", 3, ["dtype=bfloat16", *FULL]),
    *(case(f"{loss}-torch", None, of_loss(loss), (0, 2)) for loss in LOSSES),
    *(case(f"{loss}-zero2", 2, of_loss(loss), (0, 2)) for loss in LOSSES),
]
BACK = [case(f"torch-from-zero{stage}", None, FULL, (2, 5), f"half-zero{stage}") for stage in (2, 3)]


@pytest.fixture(scope="module")
def done(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every case has left its results: those of plain torch are run here, the others by two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    shutil.copytree(tiny, folder / "model")
    for each in CASES:
        if each["zero"] is None:
            ranks_worker.run(each, folder)
    (folder / "cases.json").write_text(json.dumps([each for each in CASES if each["zero"] is not None]))
    run_ranks(folder)
    for each in BACK:
        ranks_worker.run(each, folder)
    return folder


def run_ranks(folder: Path, world: int = 2) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    environment |= {"LOCAL_RANK": "0", "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    said = [folder / f"said.{rank}" for rank in range(world)]  # files: a full pipe would stop a rank, and the other with it
    ranks: list[subprocess.Popen] = []
    try:
        for rank in range(world):
            command = [sys.executable, ranks_worker.__file__, str(folder), str(rank), str(world)]
            with said[rank].open("w") as file:
                ranks.append(subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=file))
        for process, text in zip(ranks, said, strict=True):
            assert process.wait(timeout=400) == 0, text.read_text()[-3000:]
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def tensors(done: Path, name: str, file: str) -> dict[str, Tensor]:
    return load_file(done / name / file)


def metrics(done: Path, name: str) -> list[dict[str, float]]:
    """What the driver makes of the ranks' reports."""
    reports = [json.loads(path.read_text()) for path in sorted((done / name).glob("metrics.*.json"))]

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
    ("offload-zero2", "torch"),
    ("offload-zero3-from-torch", "torch"),
    *((f"lora-zero{stage}", "lora-torch") for stage in (1, 3)),
    ("adapter-zero3", "adapter-torch"),
    *((f"outliers-zero{stage}", "outliers-torch") for stage in (1, 3)),
    ("tight-zero3", "torch"),
    *((f"{loss}-zero2", f"{loss}-torch") for loss in LOSSES),
]


@pytest.mark.parametrize(("name", "expected"), ALIKE)
def test_ranks_give_the_parameters_moments_and_weights_of_one_process(done: Path, name: str, expected: str) -> None:
    """After five steps of two mini-batches, two for each of the losses; also where some of them were done elsewhere, and the
    rest from their checkpoint."""
    for file in ("learner.safetensors", "model/model.safetensors", "sent.safetensors", "logprobs.safetensors"):
        assert_same(tensors(done, name, file), tensors(done, expected, file), within=1e-5)


def test_nothing_is_compiled(done: Path) -> None:
    """A process that is killed while it compiles leaves a lock, for which all later ones would wait without a word."""
    assert not (done / "extensions").exists()


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


@pytest.mark.parametrize("name", [f"zero{stage}" for stage in STAGES])
def test_what_ranks_save_is_served_by_vllm_and_answers_as_one_process_would(
    done: Path, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    stop = [tokenizer.eos_token_id]
    requests = [
        Request(f"p{i}", 0, i, tuple(tokenizer(f"{i}+{i}=?\n").input_ids), Sampling(temperature=0, max_new_tokens=24))
        for i in range(8)
    ]
    expected = Transformers(ModelSpec(str(done / "torch" / "model")), tokenizer, stop).generate(requests)
    serving = Vllm(ModelSpec(str(done / name / "model")), tokenizer, stop, kv_cache_gb=0.05)
    found = serving.generate(requests)
    serving.close()
    assert {c.problem_id: c.token_ids for c in found} == {c.problem_id: c.token_ids for c in expected}
    assert len({c.token_ids for c in found}) > 1


def test_bfloat16_passes_under_zero3_learn_what_those_of_one_process_do(done: Path) -> None:
    """Up to the rounding of bfloat16: five steps move the parameters by some 5e-3."""
    found, start = tensors(done, "bf16-zero3", "sent.safetensors"), AutoModelForCausalLM.from_pretrained(done / "model")
    expected, before = tensors(done, "bf16-torch", "sent.safetensors"), dict(start.named_parameters())
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    moved = torch.cat([(tensor.float() - before[name].detach()).flatten() for name, tensor in expected.items()])
    apart = torch.cat([(tensor.float() - expected[name].float()).flatten() for name, tensor in found.items()])
    assert apart.norm() < 0.2 * moved.norm()


@pytest.mark.parametrize("name", [each["name"] for each in CASES if each["zero"] is not None and "drpo" not in each["name"]])
def test_a_gradient_that_is_not_finite_is_refused_and_changes_nothing(done: Path, name: str) -> None:
    for rank in range(2):
        found = json.loads((done / name / f"poisoned.{rank}.json").read_text())
        assert re.match(
            r"the gradient's norm is (inf|nan): look at a policy loss of your own; else lower optimizer\.learning_rate",
            found["said"],
        )
        assert found["changed"] == []


@pytest.mark.slow
def test_three_ranks_go_on_where_one_stopped(done: Path, tmp_path: Path) -> None:
    """No number of weights here divides by three: the last rank's part is filled up."""
    for name in ("model", "half-torch"):
        (tmp_path / name).symlink_to(done / name)
    names = [f"zero{stage}-from-torch" for stage in STAGES]
    (tmp_path / "cases.json").write_text(json.dumps([each for each in CASES if each["name"] in names]))
    run_ranks(tmp_path, world=3)
    for name in names:
        assert_same(tensors(tmp_path, name, "learner.safetensors"), tensors(done, "torch", "learner.safetensors"), within=1e-5)
