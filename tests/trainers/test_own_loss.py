"""`job: sft` of a model whose own loss has more than the likelihood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compress.architectures.mixture_of_modules import MixtureOfModules
from compress.mixture.from_llama import from_llama
from rlcore import jobs
from rlcore.errors import UserError
from rlcore.models import ModelSpec, load_tokenizer
from rlcore.recipe.load import load


@pytest.fixture
def mixture(tiny: Path, tmp_path: Path) -> Path:
    """Of one block with the 2 layers of the tiny toy, K = 1: only the load-balancing loss teaches its routers."""
    torch.manual_seed(0)
    made = from_llama(
        ModelSpec(str(tiny), device="cpu").load(),
        blocks=1,
        rounds=2,
        bottom=0,
        top=0,
        anchor=False,
        router_dim=8,
        router_top_k=1,
    )
    made.save_pretrained(tmp_path / "mixture")
    load_tokenizer(str(tiny)).save_pretrained(tmp_path / "mixture")
    return tmp_path / "mixture"


def recipe(tmp_path: Path, model: Path, extra: str = "") -> list[str]:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"job: sft\nname: mine\nthreads: 1\nmodel: {model}\ndata: {{name: chain, count: 12, strategies: {{steps: 1}}}}\n"
        f"batch_size: 4\noptimizer: {{learning_rate: 1.0e-2}}\n{extra}"
    )
    return [str(path), f"output={tmp_path / 'run'}"]


def test_the_load_balancing_loss_takes_part(mixture: Path, tmp_path: Path) -> None:
    summary = jobs.run(load(recipe(tmp_path, mixture)), resume=False)
    assert summary["steps"] == 3
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["loss"] == pytest.approx(row["cross_entropy"] + 0.01 * row["load_balance"], rel=1e-3)
    before, after = (ModelSpec(str(folder), device="cpu").load() for folder in (mixture, tmp_path / "run/model"))
    assert type(after) is MixtureOfModules
    changed = {n for n, p in before.named_parameters() if not torch.equal(p, after.get_parameter(n))}
    assert {n for n in changed if "router" in n} == {n for n, _ in before.named_parameters() if "router" in n}
    assert "model.layers.0.attention.0.q_proj.weight" in changed


def test_kl_beside_it_is_refused(mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kl cannot be learned together with the load-balancing term"):
        jobs.run(load(recipe(tmp_path, mixture, "kl: 0.1\n")), resume=False)
