"""`rlcore compress sensitivity`, from a recipe to its folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlcore.cli import main as cli
from rlcore.cli import report
from rlcore.errors import UserError
from rlcore.recipe.load import load

SMALL = [
    "compress/sensitivity",
    "evaluated_on.count=8",
    "strengths=[0.05, 0.1, 0.2]",
    "compared_at=0.1",
    "layers=[gaussian]",
    "quantisers=[{name: rtn, bits: 4, run: 0, label: coarse}, {name: cube_root, bits: 8, run: 32}]",
    "device=cpu",
]


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with large weights: as it is drawn, it says much the same whatever is done to it."""
    from rlcore.models import ModelSpec, load_tokenizer
    from rlcore.toy.model import build

    folder = tmp_path_factory.mktemp("models") / "sharp"
    build("llama-100k", seed=0, folder=folder)
    model, tokenizer = ModelSpec(str(folder), device="cpu").load(), load_tokenizer(str(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def measure(sharp: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Run the command with these overrides; its JSON, with the run's folder."""

    def run(*overrides: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("runs")
        with pytest.MonkeyPatch.context() as patch:
            arguments = [*SMALL, f"model={sharp}", f"output={folder / 'run'}", *overrides, "--json", str(folder / "a.json")]
            patch.setattr(sys, "argv", ["rlcore", "compress", "sensitivity", *arguments])
            with pytest.raises(SystemExit) as stopped:
                cli.main()
            assert not stopped.value.code
        return {**json.loads((folder / "a.json").read_text()), "folder": folder / "run"}

    return run


@pytest.fixture(scope="module")
def weights(measure: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return measure()


def test_every_measurement_is_there(weights: dict[str, Any]) -> None:
    measurements = weights["measurements"]
    assert len(measurements) == 1 + 6 * 3 + 2 + 2
    assert measurements[0]["of"] == "dense"
    assert measurements[0]["divergence"] == 0
    assert [each["layer"] for each in measurements[-2:]] == [1, 2]
    assert set(weights["kl"]) == {"gaussian", "uniform", "sign", "positive", "negative", "clipping", "coarse", "cube_root"}
    [compared] = [m for m in measurements if (m["of"], m["strength"], m["layer"]) == ("sign", 0.1, None)]
    assert weights["kl"]["sign"] == compared["divergence"] > 0
    assert weights["perplexity"]["sign"] == compared["perplexity"]
    assert weights["dense"]["solution"] == measurements[0]["solution"]


def test_norms_are_those_that_were_asked_for(weights: dict[str, Any]) -> None:
    for each in weights["measurements"]:
        if each["strength"] is not None:
            assert each["norm"] == pytest.approx(each["strength"], rel=1e-5)
        assert each["input_norm"] is None
    assert 0.001 < weights["norm"]["cube_root"] < 0.02 < weights["norm"]["coarse"] < 0.3


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "sign", "positive", "negative", "clipping"])
def test_what_is_changed_more_costs_more(weights: dict[str, Any], kind: str) -> None:
    costs = [m["divergence"] for m in weights["measurements"] if m["of"] == kind and m["layer"] is None]
    assert 0 < costs[0] < costs[1] < costs[2]


def test_a_layer_alone_costs_less_than_all(weights: dict[str, Any]) -> None:
    alone = [m["divergence"] for m in weights["measurements"] if m["layer"] is not None]
    assert all(0 < cost < weights["kl"]["gaussian"] for cost in alone)


def test_the_folder_is_a_run_that_can_be_reported(weights: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = weights["folder"]
    (folder / "report.html").unlink()
    report.run(str(folder), "")
    page = (folder / "report.html").read_text()
    assert '<section id="sensitivity"><h2>By norm</h2>' in page
    assert "KL to the dense model, by the number of the strength" in page
    assert (folder / "sensitivity.svg").read_text().count("coarse") == 1
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 1, 2]
    assert rows[1]["divergence/clipping"] == weights["kl"]["clipping"]


def test_what_is_done_is_not_done_again(weights: dict[str, Any], sharp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*SMALL, f"model={sharp}", f"output={weights['folder']}"]
    written = (weights["folder"] / "measurements.jsonl").stat().st_mtime_ns
    monkeypatch.setattr(sys, "argv", ["rlcore", "compress", "sensitivity", *arguments, "--resume"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert (weights["folder"] / "measurements.jsonl").stat().st_mtime_ns == written
    monkeypatch.setattr(sys, "argv", ["rlcore", "compress", "sensitivity", *arguments])
    with pytest.raises(SystemExit, match="holds a run already"):
        cli.main()


def test_the_same_recipe_measures_the_same(weights: dict[str, Any], measure: Callable[..., dict[str, Any]]) -> None:
    assert measure("kinds=[sign]", "layers=[]", "quantisers=[]")["kl"]["sign"] == weights["kl"]["sign"]
    assert measure("kinds=[sign]", "layers=[]", "quantisers=[]", "seed=1")["kl"]["sign"] != weights["kl"]["sign"]


def test_activations_change_and_weights_do_not(measure: Callable[..., dict[str, Any]]) -> None:
    found = measure("perturb=activations", "layers=[]", "quantisers=[{name: rtn, bits: 4, run: 0, activations: 8}]")
    for each in found["measurements"][1:]:
        assert each["norm"] is None
        assert each["input_norm"] == pytest.approx(each["strength"] or found["norm"]["rtn"], rel=1e-5)
    assert 0 < found["norm"]["rtn"] < 0.02
    assert 0 < found["kl"]["rtn"] < found["kl"]["gaussian"]


def test_both_change_together(weights: dict[str, Any], measure: Callable[..., dict[str, Any]]) -> None:
    found = measure(
        "perturb=both", "kinds=[gaussian]", "layers=[]", "quantisers=[{name: rtn, bits: 8, run: 0, activations: 8}]"
    )
    assert all(each["norm"] and each["input_norm"] for each in found["measurements"][1:])
    assert found["kl"]["gaussian"] > weights["kl"]["gaussian"]


def test_what_is_left_is_also_asked_to_solve(measure: Callable[..., dict[str, Any]]) -> None:
    asked = "eval={data: {name: chain, split: test, count: 2}, temperature: 0, max_new_tokens: 4}"
    found = measure("kinds=[gaussian]", "strengths=[0.1]", "layers=[gaussian]", "quantisers=[]", asked)
    assert found["dense"]["accuracy"] == found["accuracy"]["gaussian"] == 0
    assert [each["accuracy"] for each in found["measurements"]] == [0, 0, None, None]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kinds=[gausian]", r"'kinds.0': input should be 'gaussian'"),
        ("kinds=[sign, sign]", r"kinds \['sign', 'sign'\] names one twice"),
        ("strengths=[0.1, 1.5]", r"'strengths.1': input should be less than 1"),
        ("strengths=[0.2, 0.1]", r"do not rise"),
        ("compared_at=0.3", r"compared_at 0.3 is none of strengths"),
        ("quantisers=[rtn, {name: clipped, label: rtn}]", r"'rtn' names two of what is measured: give this one another"),
        ("quantisers=[{name: rtn, label: sign}]", r"'sign' names two"),
        ("quantisers=[{name: rtn, activations: 8}]", r"perturb: weights, and quantiser 'rtn': leave out its `activations`"),
        ("perturb=activations", r"perturb: activations, and quantiser 'coarse': give it `activations`"),
        ("evaluated_on=[]", r"'evaluated_on'"),
        ("lora={}", r"nothing is trained: leave out lora"),
    ],
)
def test_a_recipe_that_says_no_such_thing_is_refused(tiny: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load([*SMALL, f"model={tiny}", override])


def test_activations_and_eval_exclude_each_other(tiny: Path) -> None:
    with pytest.raises(UserError, match="perturb: both changes activations, which no engine does"):
        load([*SMALL, f"model={tiny}", "perturb=both", "quantisers=[]", "eval={data: chain}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("quantisers=[{name: magnitude, share: 0.5}]", "'magnitude' rounds to no grid"),
        ("quantisers=[{name: rtn, bist: 4}]", "no option 'bist'; did you mean 'bits'"),
        ("quantisers=[{name: rtn, run: 7}]", "rows of 64 weights are no multiple of runs of 7; choose other numbers"),
        ("evaluated_on={name: file, path: unsolved.jsonl}", "has no solution: calibration and evaluated_on take sources with"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(
    sharp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    arguments = [*SMALL, f"model={sharp}", f"output={tmp_path / 'run'}", "kinds=[sign]", "layers=[]", override]
    monkeypatch.chdir(tmp_path)
    Path("unsolved.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    monkeypatch.setattr(sys, "argv", ["rlcore", "compress", "sensitivity", *arguments])
    with pytest.raises(SystemExit, match=message):
        cli.main()


def test_verbs_send_a_recipe_to_the_one_that_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb, recipe, other in (
        (["train"], "compress/sensitivity", "which trains nothing: rlcore compress sensitivity compress/sensitivity"),
        (["compress"], "compress/sensitivity", "job: sensitivity: rlcore compress sensitivity compress/sensitivity"),
        (["compress", "sensitivity"], "compress/rtn", "job: compress: rlcore compress compress/rtn"),
        (["compress"], "quickstart", "job: rl: rlcore train quickstart"),
    ):
        monkeypatch.setattr(sys, "argv", ["rlcore", *verb, recipe, f"output={tmp_path / 'run'}"])
        with pytest.raises(SystemExit, match=other):
            cli.main()
