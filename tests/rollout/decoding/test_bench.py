"""`rlcore decode bench`, from a recipe to its folder, and the experiments over it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedModel

from rlcore.cli import main as cli
from rlcore.errors import UserError
from rlcore.models import ModelSpec, load_tokenizer
from rlcore.preview import preview
from rlcore.protocols import no_progress
from rlcore.recipe.load import load
from rlcore.repro import decoding, page
from rlcore.repro.experiment import plan as plan_runs
from rlcore.repro.experiment import read as read_experiment
from rlcore.toy.model import build
from rlcore.types import Problem, Request, Sampling
from rollout.decoding import bench, decode
from rollout.decoding.bench import Plan, Turn, in_turns, margin
from rollout.decoding.verify import Walk, verify
from rollout.sampling import uniforms

SMALL = ["decode/chain", "limit=3", "repeats=2", "max_new_tokens=10", "batch_sizes=[1, 2]", "device=cpu"]
METHODS = (
    "methods={{draft_model: null, gsd: null, ngram: {{name: ngram, depth: 4}}, "
    "own: {{name: gsd, model: '{0}', children: 1, sibling: 0, probable: 0}}}}"
)
FEWER = "methods={draft_model: null, gsd: null, history: null}"


@pytest.fixture(scope="module")
def unending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokens are far from equally likely, and that never ends."""
    folder = tmp_path_factory.mktemp("models") / "unending"
    build("llama-100k", seed=0, folder=folder)
    model, tokenizer = ModelSpec(str(folder), device="cpu").load(), load_tokenizer(str(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim == 2 else 1)
        model.get_output_embeddings().weight[tokenizer.eos_token_id] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def measure(unending: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Run the command with these overrides; its JSON, with the run's folder."""

    def run(*overrides: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("runs")
        with pytest.MonkeyPatch.context() as patch:
            arguments = [*SMALL, f"model={unending}", METHODS.format(unending), f"output={folder / 'run'}", *overrides]
            patch.setattr(sys, "argv", ["rlcore", "decode", "bench", *arguments, "--json", str(folder / "a.json")])
            with pytest.raises(SystemExit) as stopped:
                cli.main()
            assert not stopped.value.code
        return {**json.loads((folder / "a.json").read_text()), "folder": folder / "run"}

    return run


@pytest.fixture(scope="module")
def greedy(measure: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return measure()


def of(found: dict[str, Any], method: str, batch_size: int) -> dict[str, Any]:
    [row] = [m for m in found["measurements"] if (m["method"], m["batch_size"]) == (method, batch_size)]
    return row


# -- what is measured ------------------------------------------------------------------------------------------------------


def test_every_method_is_measured_at_every_batch_size(greedy: dict[str, Any]) -> None:
    told = [(each["batch_size"], each["method"]) for each in greedy["measurements"]]
    assert told == [(size, method) for size in (1, 2) for method in ("plain", "engine", "ngram", "history", "own")]
    assert all(len(each["seconds"]) == 2 and min(each["seconds"]) > 0 for each in greedy["measurements"])
    assert len({each["tokens"] for each in greedy["measurements"]}) == 1


def test_completions_are_those_of_plain_decoding(greedy: dict[str, Any]) -> None:
    assert set(greedy["exact"]) == {f"{m}{b}" for m in ("plain", "engine", "ngram", "history", "own") for b in ("", "_2")}
    assert set(greedy["exact"].values()) == {1.0}
    assert all(each["difference"] is None for each in greedy["measurements"])
    assert "logprob_difference" not in greedy  # greedy tokens are certain


def test_plain_decoding_is_what_all_else_is_a_ratio_to(greedy: dict[str, Any]) -> None:
    for size in (1, 2):
        plain, engine = of(greedy, "plain", size), of(greedy, "engine", size)
        assert plain["speedup"] == plain["reduction"] == plain["tokens_per_pass"] == engine["over_engine"] == 1
        assert plain["accepted"] is None
        assert plain["draft_forwards"] == 0
        assert engine["tokens_per_pass"] is engine["reduction"] is engine["cache_bytes"] is None
        speeds = [engine["tokens"] / 2 / seconds for seconds in engine["seconds"]]
        assert engine["tokens_per_second"] == pytest.approx(sum(speeds) / 2)
        ratios = [a / b for a, b in zip(plain["seconds"], engine["seconds"], strict=True)]
        assert engine["speedup"] == pytest.approx(sum(ratios) / 2)


def test_passes_add_up(greedy: dict[str, Any]) -> None:
    """Drafts of six tokens by the model itself are all right: two passes, of 7 and 3 tokens. Of one row at a time, tokens a
    pass are plain decoding's passes for one."""
    own = of(greedy, "own", 1)
    assert own["tokens"] == 2 * 3 * 10
    assert own["tokens_per_pass"] == own["reduction"] == 10 / 2
    assert own["accepted"] == 1
    assert own["draft_forwards"] == (6 + 2) / 2
    assert 0 < own["draft_share"] < 1
    history = of(greedy, "history", 1)  # which was heard in the warm-up
    assert history["tokens_per_pass"] == 10
    assert history["draft_forwards"] == 0


def test_rows_are_refilled(greedy: dict[str, Any]) -> None:
    """Three completions, two at a time, of which the third begins when the others have ended."""
    assert of(greedy, "own", 2)["tokens_per_pass"] == 5
    assert of(greedy, "own", 2)["reduction"] == (10 + 10) / (2 + 2)


def test_caches_are_counted_with_the_draft_models(greedy: dict[str, Any]) -> None:
    plain, ngram, own = (of(greedy, method, 1)["cache_bytes"] for method in ("plain", "ngram", "own"))
    assert 0 < plain <= ngram
    assert own > 1.5 * plain
    assert of(greedy, "plain", 2)["cache_bytes"] > 1.5 * plain


def test_repeats_draw_other_tokens_and_the_same_ones_for_all_methods(
    measure: Callable[..., dict[str, Any]], unending: Path
) -> None:
    drawing = f"methods={{ngram: null, drawn: {{name: draft_model, model: '{unending}'}}}}"
    found = measure("temperature=1", drawing, "batch_sizes=[2]")
    assert found["exact"] == {"plain": 1, "engine": 1, "history": 1, "own": 1}
    assert of(found, "drawn", 2)["difference"] is None
    assert of(found, "drawn", 2)["accepted"] > 0.99  # from the policy's own distribution
    assert 0 < found["logprob_difference"]["own"] < 1e-4
    assert set(found["logprob_difference"]) == set(found["exact"])
    assert of(found, "history", 2)["tokens_per_pass"] < 4  # of a repeat it has heard nothing


# -- turns -----------------------------------------------------------------------------------------------------------------

ASKED = Plan([Problem("a", "", ""), Problem("b", "", "")], [(1,), (2,)], {}, Sampling(), seed=0)


class Heard:
    draws, cache_bytes = False, None

    def __init__(self, label: str, heard: list[tuple[str, list[Request]]]) -> None:
        self.label, self.heard = label, heard

    def turn(self, requests: Sequence[Request]) -> Turn:
        self.heard.append((self.label, list(requests)))
        return Turn([], seconds=len(self.heard), counts=None)


def test_methods_take_turns_and_the_first_is_not_measured() -> None:
    heard: list[tuple[str, list[Request]]] = []
    turns = in_turns({label: Heard(label, heard) for label in "xy"}, ASKED, 2, no_progress)
    assert [label for label, _ in heard] == list("xyxyxy")
    assert {label: [turn.seconds for turn in taken] for label, taken in turns.items()} == {"x": [3, 5], "y": [4, 6]}
    asked = [requests for _, requests in heard]
    assert asked[0::2] == asked[1::2]
    assert len({request.seed for requests in asked[0::2] for request in requests}) == 6


def test_the_seed_draws_the_prompts(tiny: Path) -> None:
    def drawn(*overrides: str) -> list[str]:
        lines = list(preview(load([*SMALL, f"model={tiny}", FEWER, *overrides]).recipe))
        assert lines[1] == "plain, engine, ngram, in turns; batch sizes 1, 2"
        assert lines[2] == "turns: 18, warm-ups included"
        return lines

    assert drawn() == drawn() != drawn("seed=1")
    assert drawn("limit=200")[0] == drawn("limit=200", "seed=1")[0]


# -- where they are not the same -------------------------------------------------------------------------------------------


def broken(logits: torch.Tensor, trees: Any, *rest: Any) -> list[Walk]:
    """The verifier, but that it says another token after a draft that was accepted."""
    walks = verify(logits, trees, *rest)
    for walk in walks:
        if len(walk.nodes) > 1:
            walk.tokens[-1] = (walk.tokens[-1] + 1) % logits.shape[-1]
    return walks


def test_what_is_not_plain_decoding_is_told(
    measure: Callable[..., dict[str, Any]],
    greedy: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(decode, "verify", broken)
    found = measure("batch_sizes=[1]")
    assert found["exact"]["plain"] == found["exact"]["engine"] == 1
    assert found["exact"]["own"] == 0
    first = of(found, "own", 1)["difference"]
    assert (first["repeat"], first["position"]) == (1, 6)
    assert first["drafted"] != first["plain"]
    assert first["margin"] > 1e-5
    told = " ".join(capsys.readouterr().err.split())
    assert (
        f"own at batch size 1: 100.0% of the completions are not plain decoding's; the first is that of {first['problem_id']}"
    )
    assert "own at batch size 1: 100.0% of the completions are not plain decoding's" in told
    assert f"the first is that of {first['problem_id']} (repeat 1), at token 6" in told


def test_how_near_another_token_was(oracle: PreTrainedModel) -> None:
    prompt, said = (3, 1, 4), (1, 5)
    with torch.no_grad():
        p = oracle(torch.tensor([[*prompt, *said]])).logits[0, -1].double().softmax(-1)
    request = Request("p", 0, 7, prompt, Sampling(temperature=0.0))
    best, second = p.topk(2).values
    assert margin(oracle, request, said) == pytest.approx(float((best / second).log()), abs=1e-4)
    drawn = Request("p", 0, 7, prompt, Sampling(temperature=1.0))
    u = float(uniforms(7, 3)[2])
    assert margin(oracle, drawn, said) == pytest.approx(min(abs(u - float(edge)) for edge in p.cumsum(-1)), abs=1e-5)


# -- the folder and the experiment -----------------------------------------------------------------------------------------


def test_the_folder_is_a_run_with_a_report(greedy: dict[str, Any], unending: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = greedy["folder"]
    assert len((folder / "bench.jsonl").read_text().splitlines()) == 10
    drawn = (folder / "bench.svg").read_text()
    assert "tokens a pass over a row" in drawn
    assert all(drawn.count(f">{method}<") == 1 for method in ("plain", "engine", "ngram", "history", "own"))
    report = (folder / "report.html").read_text()
    assert '<section id="bench"><h2>Drafts</h2>' in report
    assert '<section id="decoding">' in report
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["batch_size"] for row in rows] == [1, 2]
    assert rows[1]["speedup/own"] == greedy["speedup"]["own_2"]
    written = (folder / "bench.jsonl").stat().st_mtime_ns
    arguments = [*SMALL, f"model={unending}", METHODS.format(unending), f"output={folder}"]
    monkeypatch.setattr(sys, "argv", ["rlcore", "decode", "bench", *arguments, "--resume"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert (folder / "bench.jsonl").stat().st_mtime_ns == written


def test_an_experiment_is_read_from_its_runs(greedy: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    """Arms of other methods; a claim is about those that some arm has."""
    experiment = {
        "title": "Drafts",
        "about": "",
        "base": [*SMALL, f"model={tiny}"],
        "arms": {"all": [METHODS.format(tiny)], "one": [FEWER, "batch_sizes=[1]"]},
        "varies": ["methods", "batch_sizes"],
        "seeds": [100],
        "claims": {"fewer": "reduction_own[all] > 4", "exact": "exact_own_2[all] > 0.99", "none": "speedup_own[one] > 0"},
        "tried": "nothing",
    }
    file = tmp_path / "drafts.yaml"
    file.write_text(yaml.safe_dump(experiment))
    name, read = read_experiment(str(file))
    runs = plan_runs(name, read, [100])
    assert runs[0].command[:3] == ("decode", "bench", "decode/chain")
    results = {run.name: {100: decoding.collect(greedy["folder"], run.recipe, 0.7)} for run in runs}
    metrics = results["all"][100].metrics
    assert metrics["reduction_own"] == 5
    assert metrics["speedup_own_2"] == of(greedy, "own", 2)["speedup"]
    assert metrics["reduction_engine"] is None
    assert set(results["one"][100].metrics) == {f"{q}_{m}" for q in bench.QUANTITIES for m in ("plain", "engine", "ngram")}

    result = page.document(name, read, results)
    assert result["claims"]["fewer"]["per_seed"] == {"100": 5}
    assert result["claims"]["none"]["per_seed"] == {"100": None}
    head, rows = decoding.table(result)
    assert head == ["method", "all: fewer passes", "all: speed-up", "one: fewer passes", "one: speed-up"]
    table = {row[0]: row[1:] for row in rows}
    methods = ["plain", "engine", "ngram", "history", "own"]
    assert list(table) == [*methods, *(f"{method}_2" for method in methods)]
    assert table["own"][0] == "5.00"
    assert table["own"][2:] == ["none", "none"]
    decoding.draw(result, tmp_path / "drafts.svg")
    assert "batch size" in (tmp_path / "drafts.svg").read_text()
    file.write_text(yaml.safe_dump(experiment | {"claims": {"c": "reduction_mine[all] > 1"}}))
    with pytest.raises(UserError, match="there is no metric 'reduction_mine'"):
        read_experiment(str(file))


# -- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methods={draft_model: null, gsd: null, history: null, ngram: null}", r"'methods': .* at least 1"),
        ("methods={a: {depth: 3}}", r"'methods.a.name' is missing"),
        ("methods={plain: ngram}", "'plain' is measured anyway, without drafts: give the drafter another label"),
        ("methods={a-b: ngram}", "'methods.a-b"),
        ("batch_sizes=[2, 2]", r"batch_sizes \[2, 2\] name one twice"),
        ("batch_sizes=[0]", "'batch_sizes.0'"),
        ("temperature=-1", "'temperature'"),
        ("lora={}", "nothing is trained: leave out lora"),
    ],
)
def test_a_recipe_that_says_no_such_thing_is_refused(tiny: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load([*SMALL, f"model={tiny}", override])


def test_names_with_batch_sizes_are_told_apart(tiny: Path) -> None:
    with pytest.raises(UserError, match="'a_2' names two of what is measured"):
        load([*SMALL, f"model={tiny}", "methods={a: ngram, a_2: history}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methods={a: engram}", "there is no 'engram' in rollout/drafters; did you mean 'ngram'"),
        ("methods={a: {name: ngram, dept: 3}}", "'ngram' has no option 'dept'; did you mean 'depth'"),
        (
            "methods={a: {name: compressed, methods: rtn}}",
            "methods.a: the engine transformers verifies no drafts of compressed",
        ),
        ("methods={a: {name: gsd, model: 'toy:chian'}}", "there is no toy:chian; did you mean 'chain'"),
        ("max_new_tokens=100000", "is more than the model's context"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(tiny: Path, tmp_path: Path, override: str, message: str) -> None:
    recipe = load([*SMALL, f"model={tiny}", f"output={tmp_path / 'run'}", override]).recipe
    with pytest.raises(UserError, match=message):
        list(preview(recipe))


def test_the_recipe_is_sent_to_its_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb, recipe, other in (
        (["train"], "decode/chain", "which trains nothing: rlcore decode bench decode/chain"),
        (["decode", "bench"], "compress/rtn", "job: compress: rlcore compress compress/rtn"),
    ):
        monkeypatch.setattr(sys, "argv", ["rlcore", *verb, recipe, f"output={tmp_path / 'run'}"])
        with pytest.raises(SystemExit, match=other):
            cli.main()
