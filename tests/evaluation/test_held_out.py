"""What `job: sft` tells of held-out solutions, and what is refused before it trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.mixture.from_llama import from_llama
from compress.texts import texts_of
from rlcore import jobs
from rlcore.errors import UserError
from rlcore.models import ModelSpec, load_tokenizer
from rlcore.prompts import Prompter
from rlcore.recipe.load import load

HELD_OUT = "{name: chain, split: test, count: 7, strategies: {steps: 1.0}}"


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., dict]:
    """The summary of two steps from a model, in the folder `run`."""

    def train(model: Path, *layers: str) -> dict:
        path = tmp_path / "mine.yaml"
        path.write_text(
            f"job: sft\nthreads: 1\nmodel: {model}\nbatch_size: 4\noptimizer: {{learning_rate: 1.0e-3}}\n"
            f"data: {{name: chain, count: 8, strategies: {{steps: 1.0}}}}\nevaluated_on: {HELD_OUT}\n"
        )
        return jobs.run(load([str(path), f"output={tmp_path / 'run'}", "device=cpu", *layers]), resume=False)

    return train


def test_of_a_llama_by_hand(trained: Callable[..., dict], tiny: Path, tmp_path: Path) -> None:
    summary = trained(tiny)
    model, tokenizer = ModelSpec(str(tmp_path / "run/model"), device="cpu").load(), load_tokenizer(str(tiny))
    recipe = load([str(tmp_path / "mine.yaml")]).recipe
    lost = tokens = context = count = 0.0
    for text in texts_of(recipe.evaluated_on, Prompter(recipe.prompt, tokenizer)):
        assert text.ids[-1] == tokenizer.eos_token_id
        ids = torch.tensor([text.ids])
        labels = torch.tensor([[-100] * len(text.prompt) + [*text.solution]])
        with torch.no_grad():
            lost += float(model(ids, labels=labels).loss) * len(text.solution)
        tokens += len(text.solution)
        context += sum(range(1, len(text.ids) + 1))
        count += len(text.ids)
    assert summary["held_out_loss"] == pytest.approx(lost / tokens, rel=1e-4)
    config = model.config
    layer = 8 * 64 * 64 + 4 * 64 * context / count + 6 * 64 * 128
    assert summary["flops"] == pytest.approx(2 * layer + 2 * 64 * config.vocab_size)
    assert (summary["layers"], summary["depth"], summary["skipped"]) == (2, 2, 0)
    assert summary["cache_bytes"] == 2 * 2 * 64 * 4
    assert summary["parameters"] == model.num_parameters()
    assert not (tmp_path / "run/routing.json").exists()


def test_of_a_mixture_by_its_routing(trained: Callable[..., dict], tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = from_llama(
        ModelSpec(str(tiny), device="cpu").load(),
        **dict(blocks=1, rounds=3, bottom=0, top=0, anchor=False, router_dim=8, router_top_k=1, renormalise=False),
    )
    for name, parameter in made.named_parameters():
        if "router" in name:
            parameter.data *= 100  # so that tokens go different ways
    made.save_pretrained(tmp_path / "mixture")
    load_tokenizer(str(tiny)).save_pretrained(tmp_path / "mixture")
    summary = trained(tmp_path / "mixture")
    routing = json.loads((tmp_path / "run/routing.json").read_text())
    [attention], [feed_forward] = routing["attention"], routing["feed_forward"]
    for shares in (*attention, *feed_forward):
        assert sum(shares) == pytest.approx(1)
    used = [1 - shares[-1] for shares in (*attention, *feed_forward)]
    assert 0 < summary["skipped"] == pytest.approx(1 - sum(used) / 6, abs=1e-6)
    assert summary["layers"] == pytest.approx(sum(used) / 2, rel=1e-5)
    assert summary["depth"] == 3
    assert summary["cache_bytes"] == pytest.approx(2 * 64 * 4 * sum(used[:3]), rel=1e-5)


def test_nothing_is_measured_unasked(trained: Callable[..., dict], tiny: Path) -> None:
    assert "held_out_loss" not in trained(tiny, "evaluated_on=null")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{name: chain, count: 3}", "problem chain/train/0 has no solution: calibration and evaluated_on"),
        ("{name: chain, count: 1, difficulty: [90, 90], strategies: {steps: 1.0}}", "and the model's context allows 512"),
    ],
)
def test_what_cannot_be_predicted_is_refused_before_training(
    trained: Callable[..., dict], tiny: Path, tmp_path: Path, source: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        trained(tiny, "evaluated_on=null", f"evaluated_on={source}")
    assert not (tmp_path / "run/model").exists()
