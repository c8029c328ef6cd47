"""`rlcore decode cluster` and `rlcore decode prefill`, from a recipe to its folder, and the experiments over them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerBase

from rlcore.cli import main as cli
from rlcore.errors import UserError
from rlcore.preview import preview
from rlcore.recipe.load import load
from rlcore.repro import page, prefill
from rlcore.repro.experiment import plan, plan_models, read
from rlcore.repro.run import _made
from rlcore.types import Problem
from rollout.prefill.measure import Measurement, _answered, summary
from rollout.prefill.texts import LongPrompt, fillers, long_prompt

DATA = "data={name: chain, split: test, count: 60, strategies: {steps: 1}}"
SMALL = "{block: 16, min_budget: 16, gamma: 0.5}"


def clustering(tiny: Path) -> list[str]:
    return ["decode/cluster", f"model={tiny}", DATA, "length=128", "block=16", "distance=0.5", "device=cpu"]


def measuring(tiny: Path, clusters: object) -> list[str]:
    patterns = f"{{vertical_slash: {SMALL}, flex_prefill: {SMALL}, share_prefill: {SMALL}}}"
    own = f"patterns.share_prefill.clusters={clusters}"
    sizes = ["lengths=[192, 256]", "depths=[0.2, 0.7]", "positions=16", "turns=2", "device=cpu"]
    return ["decode/prefill", f"model={tiny}", DATA, f"patterns={patterns}", own, *sizes]


def command(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rlcore", "decode", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code


@pytest.fixture(scope="module")
def clusters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "clusters"
    command("cluster", *clustering(tiny), f"output={folder}", "--json", str(folder.parent / "a.json"))
    found = json.loads((folder.parent / "a.json").read_text())
    of_file = json.loads((folder / "clusters.json").read_text())
    members = [tuple(head) for cluster in of_file["clusters"].values() for head in cluster]
    assert len(members) == len(set(members)) == found["heads"] == of_file["layers"] * of_file["heads"]
    assert found["shared_heads"] == sum(len(of_file["clusters"][name]) for name in of_file["shared_clusters"]) > 0
    assert found["cluster_s"] > 0
    return folder


@pytest.fixture(scope="module")
def measured(tiny: Path, clusters: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs") / "prefill"
    command("prefill", *measuring(tiny, clusters), f"output={folder}", "--json", str(folder.parent / "a.json"))
    return folder, json.loads((folder.parent / "a.json").read_text())


def test_every_pattern_is_measured_at_every_length(measured: tuple[Path, dict[str, Any]], clusters: Path) -> None:
    folder, found = measured
    labels, lengths = ["dense", "vertical_slash", "flex_prefill", "share_prefill"], ["192", "256"]
    for quantity in prefill.QUANTITIES:
        assert {label: list(of) for label, of in found[quantity].items()} == dict.fromkeys(labels, lengths)
    for length in lengths:
        of = {quantity: found[quantity]["dense"][length] for quantity in prefill.QUANTITIES}
        assert (of["share"], of["speedup"], of["processor_speedup"], of["divergence"]) == (1, 1, 1, 0)
        for label in labels[1:]:
            assert 0.2 < found["share"][label][length] < 1
            assert found["divergence"][label][length] > 0
            assert found["answer"][label][length] < 0
    assert found["cluster_s"] == json.loads((clusters / "clusters.json").read_text())["seconds"]
    rows = [json.loads(line) for line in (folder / "measurements.jsonl").read_text().splitlines()]
    assert [(row["turn"], row["length"], row["pattern"]) for row in rows] == [
        (turn, length, label) for turn in (0, 1) for length in (192, 256) for label in labels
    ]
    assert all(len(row["answers"]) == len(row["recalled"]) == 2 for row in rows)
    assert "share of blocks computed" in (folder / "prefill.svg").read_text()
    assert "what patterns of sparse attention save of the prefill" in (folder / "report.html").read_text()


def test_a_run_that_is_done_is_not_done_again(tiny: Path, clusters: Path, measured: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = measured
    written = (folder / "measurements.jsonl").stat().st_mtime_ns
    command("prefill", *measuring(tiny, clusters), f"output={folder}", "--resume")
    assert (folder / "measurements.jsonl").stat().st_mtime_ns == written


def test_an_experiment_makes_the_clusters_and_is_read_from_its_runs(
    tiny: Path, tmp_path: Path, measured: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = {
        "title": "Prefill",
        "about": "",
        "base": measuring(tiny, "{heads}"),
        "models": {"heads": clustering(tiny)},
        "arms": {"tiny": []},
        "seeds": [100],
        "claims": {"sparse": "share_share_prefill_256[tiny] < 1", "dense": "recalled_dense_192[tiny] > -1"},
        "tried": "nothing",
    }
    file = tmp_path / "prefill.yaml"
    file.write_text(yaml.safe_dump(experiment))
    name, known = read(str(file))
    [model] = plan_models(known)
    assert model.command[:2] == ("decode", "cluster")
    assert [path.name for path in _made(model)] == ["clusters.json"]
    [run] = plan(name, known, [100])
    assert run.command[:2] == ("decode", "prefill")
    assert any(str(model.folder) in word for word in run.command)
    folder, found = measured
    result = page.document(name, known, {"tiny": {100: prefill.collect(folder, run.recipe, 0.7)}})
    assert result["claims"]["sparse"]["per_seed"] == {"100": found["share"]["share_prefill"]["256"]}
    head, rows = prefill.table(result)
    table = {tuple(row[:2]): row[2:] for row in rows}
    assert len(table) == 8
    assert all(len(row) == len(head) - 2 for row in table.values())
    assert table["tiny, dense", "256"][0] == "1.00"
    assert "Clustering the heads beforehand took" in prefill.note(result)
    prefill.draw(result, tmp_path / "prefill.svg")
    assert "speed-up over dense" in (tmp_path / "prefill.svg").read_text()


def test_the_shipped_experiment_asks_for_what_there_is() -> None:
    _, known = read("share_prefill")
    assert {"speedup_share_prefill_8192", "divergence_vertical_slash_2048", "cluster_s"} <= set(known.metrics)


# -- dry runs and what is refused ------------------------------------------------------------------------------------------


def test_dry_runs_show_what_would_be_read(tiny: Path, clusters: Path) -> None:
    told = "\n".join(preview(load(clustering(tiny)).recipe))
    assert "2 prompts of 128 tokens, the first begins" in told
    assert "to cluster: " in told
    told = "\n".join(preview(load(measuring(tiny, clusters)).recipe))
    assert "patterns: dense, vertical_slash, flex_prefill, share_prefill" in told
    assert "prompts of 192, 256 tokens, in 2 turns: 16 prefills" in told
    assert "cobalt code is" in told


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("patterns={dense: vertical_slash}", "'dense' is measured anyway, without a pattern: give this one another label"),
        ("patterns={name: vertical_slash}", "patterns go by a label"),
        ("patterns={share_prefill: null, flex_prefill: null, vertical_slash: null}", "'patterns': .* at least 1"),
        ("lengths=[256, 192]", r"lengths \[256, 192\] do not rise"),
        ("depths=[0.5, 0.5]", r"depths \[0.5, 0.5\] do not rise"),
    ],
)
def test_a_recipe_that_says_no_such_thing_is_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(["decode/prefill", override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lengths=[100000]", "lengths: 100000 is more than the model's context of"),
        ("patterns={a: slash}", "there is no 'slash' in rollout/prefill/patterns"),
        ("patterns.flex_prefill.blocks=3", "'flex_prefill' has no option 'blocks'; did you mean 'block'"),
        ("patterns.share_prefill.clusters=nowhere", "there are no clusters in nowhere: make them with rlcore decode cluster"),
        ("data.strategies=null", "problem chain/test/0 has no solution"),
        ("lengths=[40]", "a prompt of 40 tokens has no room for 2 hidden numbers: ask for more tokens"),
        ("data.count=2", r"a prompt of 192 tokens needs \d+ of filler, and data has \d+: name more"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(tiny: Path, clusters: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(preview(load([*measuring(tiny, clusters), override]).recipe))


def test_prompts_beyond_the_context_are_refused_for_clusters(tiny: Path) -> None:
    with pytest.raises(UserError, match="length 100000 is more than the model's context of"):
        list(preview(load([*clustering(tiny), "length=100000"]).recipe))


# -- prompts and sums ------------------------------------------------------------------------------------------------------


def test_numbers_stand_where_they_are_to_and_are_asked_for_in_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    filler = tokenizer("+", add_special_tokens=False).input_ids * 400
    prompt = long_prompt(filler, tokenizer, [0.25, 0.75], 400, seed=3)
    assert len(prompt.ids) == 400
    said = [tokenizer.decode([prompt.ids[place] for place in answer]).strip() for answer in prompt.answers]
    assert len(set(said)) == 2
    text = tokenizer.decode(prompt.ids)
    for value in said:
        assert text.count(value) == 2
    first, second = (text.index(value) / len(text) for value in said)
    assert 0.15 < first < 0.35 < 0.6 < second < 0.85
    assert long_prompt(filler, tokenizer, [0.25, 0.75], 400, seed=4).ids != prompt.ids


def test_fillers_come_in_an_order_of_the_seed(tokenizer: PreTrainedTokenizerBase) -> None:
    problems = [Problem(str(i), f"{i}+1=?", str(i + 1), meta={"solution": f"{i}+1={i + 1}"}) for i in range(8)]
    orders = [[tokenizer.decode(ids) for ids in fillers(problems, tokenizer, seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_a_number_is_recalled_where_each_of_its_tokens_is_the_likeliest() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])
    prompt = LongPrompt(ids=(2, 0, 1, 1, 2), answers=((1, 2), (3, 4)))
    said, recalled = _answered(probabilities.log(), prompt)
    expected = torch.tensor([0.7, 0.3, 0.6, 0.4]).log()
    assert said == pytest.approx([float(expected[:2].mean()), float(expected[2:].mean())])
    assert recalled == [False, True]


def measurement(pattern: str, turn: int, seconds: float, recalled: Sequence[bool]) -> Measurement:
    return Measurement(pattern, 64, turn, 0.5, seconds, seconds / 2, 2 * seconds, 0.1 * (turn + 1), [-1.0, -turn], recalled)


def test_turns_are_summed_up_by_pairs() -> None:
    """Speed-ups are medians of those within a turn; recall is a mean over numbers."""
    turns = [(2.0, 1.0), (9.0, 3.0), (4.0, 4.0)]
    found = [
        each
        for turn, (dense, sparse) in enumerate(turns)
        for each in (measurement("dense", turn, dense, [True, True]), measurement("a", turn, sparse, [True, turn > 0]))
    ]
    told = {quantity: of["a"]["64"] for quantity, of in summary(found).items()}
    assert (told["seconds"], told["speedup"], told["attention_speedup"], told["processor_speedup"]) == (3, 2, 2, 2)
    assert told["recalled"] == pytest.approx(5 / 6)
    assert told["divergence"] == pytest.approx(0.2)
    assert told["answer"] == pytest.approx(-1)
