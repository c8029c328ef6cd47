"""`job: sft` through TRL, and the toys that are made with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlcore import jobs, models
from rlcore.data.sources.trees import trees
from rlcore.errors import UserError
from rlcore.prompts import Prompter
from rlcore.recipe.load import load
from rlcore.recipe.schema import Prompt
from rlcore.toy import warmstart
from rlcore.types import Problem
from trainers.near_reference import divergence
from trainers.sft import IGNORED, _encode


def recipe(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text("job: sft\nname: mine\nthreads: 1\n" + text)
    return str(path)


@pytest.mark.parametrize(("extra", "share"), [("", 0.8), ("lora: {rank: 4}\n", 0.97)], ids=["full", "lora"])
def test_the_loss_falls_and_the_checkpoint_loads(tiny: Path, tmp_path: Path, extra: str, share: float) -> None:
    from transformers import AutoModelForCausalLM

    text = f"model: {tiny}\ndata: {{name: chain, count: 640, strategies: {{steps: 1}}}}\nbatch_size: 16\n"
    path = recipe(tmp_path, text + "optimizer: {learning_rate: 1.0e-2}\n" + extra)
    summary = jobs.run(load([path, f"output={tmp_path / 'run'}"]), resume=False)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < share * rows[0]["loss"]
    assert summary["examples"] == 640
    before = AutoModelForCausalLM.from_pretrained(tiny)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    changed = [not torch.equal(p, q) for p, q in zip(before.parameters(), after.parameters(), strict=True)]
    assert any(changed)


def test_a_run_of_a_few_steps_keeps_its_model(tiny: Path, tmp_path: Path) -> None:
    text = f"model: {tiny}\ndata: {{name: chain, count: 8, strategies: {{steps: 1}}}}\nbatch_size: 4\n"
    jobs.run(load([recipe(tmp_path, text), f"output={tmp_path / 'run'}"]), resume=False)
    for left in ("model/model.safetensors", "summary.json", "report.html"):
        assert (tmp_path / "run" / left).exists()


def test_the_loss_is_on_the_solution_and_its_end_only(tiny: Path) -> None:
    tokenizer = models.load_tokenizer(str(tiny))
    problem = Problem("p", "1+2=?", "3", meta={"solution": "1+2=3\n#### 3"})
    row = _encode(problem, Prompter(Prompt(), tokenizer), most=64)
    learned = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert tokenizer.decode(learned) == "1+2=3\n#### 3<eos>"
    assert tokenizer.decode(row["input_ids"]).startswith("1+2=?\n")


def test_several_gpus_are_refused(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers would take a batch of `batch_size` for each of them."""
    from trl import SFTConfig

    monkeypatch.setattr(SFTConfig, "n_gpu", 4)
    text = f"model: {tiny}\ndata: {{name: chain, count: 8, strategies: {{steps: 1}}}}\n"
    with pytest.raises(UserError, match="trains on one GPU and sees 4: launch with CUDA_VISIBLE_DEVICES=0"):
        jobs.run(load([recipe(tmp_path, text), f"output={tmp_path / 'run'}"]), resume=False)


def test_a_problem_without_a_solution_or_too_long_is_refused(tiny: Path) -> None:
    prompter = Prompter(Prompt(), models.load_tokenizer(str(tiny)))
    with pytest.raises(UserError, match="p has no solution to learn from"):
        _encode(Problem("p", "1", "1"), prompter, 64)
    with pytest.raises(UserError, match="p has 10 tokens with its solution, and max_length and the model's context allow 9"):
        _encode(Problem("p", "1+2", "3", meta={"solution": "1+2=3"}), prompter, 9)


def test_a_toy_is_made_once_and_anew_when_its_recipe_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the schooling cut to a few examples: same folder the second time, another one for another recipe."""
    monkeypatch.setenv("RLCORE_CACHE_DIR", str(tmp_path))
    full = warmstart._recipe

    def short(name: str, count: int = 64) -> object:
        loaded = full(name)
        [source] = loaded.data
        return loaded.model_copy(update={"data": [source.model_copy(update={"count": count})], "model": "scratch:llama-100k"})

    monkeypatch.setattr(warmstart, "_recipe", short)
    first = warmstart.resolve("toy:chain", 0)
    stamp = (Path(first) / "model.safetensors").stat().st_mtime_ns
    assert warmstart.resolve("toy:chain", 0) == first
    assert (Path(first) / "model.safetensors").stat().st_mtime_ns == stamp
    monkeypatch.setattr(warmstart, "_recipe", lambda name: short(name, 65))
    assert warmstart.resolve("toy:chain", 0) != first


def test_a_failed_build_leaves_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLCORE_CACHE_DIR", str(tmp_path))

    def fail(folder: Path) -> None:
        (folder / "half").write_text("written")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        models.cached("thing", fail)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


# -- near the model that it began with -----------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_torch_distributions() -> None:
    reference, policy = torch.randn(5, 7), torch.randn(5, 7)
    of = torch.distributions.Categorical
    wanted = torch.distributions.kl_divergence(of(logits=reference), of(logits=policy)).sum()
    assert divergence(reference, policy).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert divergence(policy, policy).item() == 0


@pytest.mark.parametrize("lora", ["", "lora: {rank: 4}\n"], ids=["full", "lora"])
def test_a_penalty_keeps_the_policy_near_where_it_began(tiny: Path, tmp_path: Path, lora: str) -> None:
    """The metric is the divergence before each step: 0 at first; without a weight that counts it grows several times as far."""
    text = f"model: {tiny}\ndata: {{name: chain, count: 64, strategies: {{steps: 1}}}}\nbatch_size: 8\nepochs: 3\n{lora}"
    path = recipe(tmp_path, text + "optimizer: {learning_rate: 5.0e-3}\n")
    ends = {}
    for weight in (1e-6, 10.0):
        jobs.run(load([path, f"kl={weight}", f"output={tmp_path / str(weight)}"]), resume=False)
        rows = [json.loads(line) for line in (tmp_path / str(weight) / "metrics.jsonl").read_text().splitlines()]
        distances = [row["kl"] for row in rows if "kl" in row]
        assert distances[0] == pytest.approx(0, abs=1e-4)
        ends[weight] = distances[-1]
    assert ends[1e-6] > 3 * ends[10.0] > 0


TREE = """{"id": "t", "problem": "3+5-9=?", "answer": "9", "nodes": [
  {"steps": [], "parent": null, "visits": 5, "correct": 4, "ends": false},
  {"steps": ["3+5=8"], "parent": 0, "visits": 2, "correct": 2, "ends": false},
  {"steps": ["#### 9"], "parent": 1, "visits": 1, "correct": 1, "ends": true},
  {"steps": ["#### 9"], "parent": 1, "visits": 1, "correct": 1, "ends": true},
  {"steps": ["3+5=7"], "parent": 0, "visits": 2, "correct": 1, "ends": false}],
  "separator": "\\n"}"""


def test_nodes_that_come_out_right_are_solutions_and_go_on_where_the_tree_does(tiny: Path, tmp_path: Path) -> None:
    """What is said twice is learned once; what is not finished has no end of turn."""
    (tmp_path / "trees.jsonl").write_text(TREE.replace("\n", "") + "\n")
    problems = trees(path=str(tmp_path / "trees.jsonl"))
    assert [(p.id, p.prompt, p.meta["solution"]) for p in problems] == [
        ("t#0", "3+5-9=?", "3+5=8\n"),
        ("t#1", "3+5-9=?", "3+5=8\n#### 9"),
    ]
    tokenizer = models.load_tokenizer(str(tiny))
    texts = [tokenizer.decode(_encode(p, Prompter(Prompt(), tokenizer), 64)["input_ids"]) for p in problems]
    assert texts == ["3+5-9=?\n3+5=8\n", "3+5-9=?\n3+5=8\n#### 9<eos>"]
    assert len(trees(path=str(tmp_path / "trees.jsonl"), at_least=0.5)) == 3
