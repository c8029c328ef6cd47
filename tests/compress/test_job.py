"""`rlcore compress`: from a recipe to a folder, what is reported of it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from compress.compressed import load_held
from compress.written_out import written_out
from rlcore.cli.main import app
from rlcore.errors import UserError

TEXT = "{name: chain, count: 60, strategies: {steps: 1.0}}"
PIPELINE = (
    "methods=[{name: magnitude, pattern: [4, 8]}, {name: mask_lora, steps: 2, rank: 2}, {name: mvq, codes: 16}, "
    "{name: codewords, steps: 2}]"
)


@pytest.fixture
def run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(
        f"job: compress\nmodel: {tiny}\ndevice: cpu\ncalibration: {{data: {TEXT}, rows: 8, length: 32, rows_at_once: 4}}\n"
        f"evaluated_on: {{name: chain, split: test, count: 10, strategies: {{steps: 1.0}}}}\n"
    )

    def invoke(*arguments: str) -> dict:
        result = CliRunner().invoke(app, ["compress", "tiny.yaml", *arguments, "--json", "out.json"])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return dict(json.loads(Path("out.json").read_text()))

    return invoke


def test_a_recipe_is_done_measured_and_reported(run: Callable) -> None:
    summary = run(PIPELINE, "name=mvq", "eval={data: {name: chain, split: test, count: 4}, max_new_tokens: 8, temperature: 0}")
    assert summary["bits_per_weight"] == pytest.approx((4 + 7) / 8 + 16 * 8 * 8 * 14 / 90112, rel=0.5)
    assert set(summary["method_seconds"]) == {"1. magnitude", "2. mask_lora", "3. mvq", "4. codewords"}
    assert {"perplexity", "solution", "divergence", "accuracy", "fit_s"} <= set(summary)
    lines = [json.loads(line) for line in Path("runs/mvq/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert 0.2 < lines[0]["error/down_proj"] < 1
    assert "down_proj" in Path("runs/mvq/report.html").read_text()


def test_the_model_is_evaluated_and_trained_on_by_its_run_folder(
    run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RLCORE_CACHE_DIR", str(tmp_path / "cache"))
    run("methods=[rtn]", "methods=[{name: rtn, run: 64}]", "name=four")
    asked = [
        "eval",
        "--model",
        "runs/four",
        "--data",
        "{name: chain, count: 3}",
        "--max-new-tokens",
        "4",
        "--max-invalid-fraction",
        "1",
    ]
    assert CliRunner().invoke(app, asked).exit_code == 0


def test_inputs_that_are_rounded_are_not_forgotten_because_the_same_weights_were_used_before(
    run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RLCORE_CACHE_DIR", str(tmp_path / "cache"))
    run("methods=[{name: rtn, bits: 8, run: 0}]", "name=weights")
    run("methods=[{name: rtn, bits: 8, run: 0, activations: 8}]", "name=inputs")
    Path(written_out(Path("runs/weights/model")))
    with pytest.raises(UserError, match="cannot say that activations are quantised"):
        written_out(Path("runs/inputs/model"))


def test_the_recipes_seed_is_that_of_methods_that_draw(run: Callable) -> None:
    """And what was drawn is told; a seed that a method is given is its own."""
    for name, arguments in {
        "a": ["seed=3"],
        "b": ["seed=4"],
        "c": ["methods=[{name: vq, codes: 16, seed: 4}]", "seed=3"],
    }.items():
        run("methods=[{name: vq, codes: 16}]", *arguments, f"name={name}", "calibration=null")
    books = [load_held(Path(f"runs/{name}/model"))["model.layers.0.mlp.up_proj.weight"].codewords for name in "abc"]
    assert not torch.equal(books[0], books[1])
    assert torch.equal(books[1], books[2])
    assert json.loads(Path("runs/a/model/compression.json").read_text())["history"][0]["seed"] == 3


def test_runs_are_held_against_each_other(run: Callable) -> None:
    run("methods=[]", "name=dense")
    run("methods=[{name: rtn, bits: 4, run: 64}]", "name=four")
    shown = CliRunner().invoke(app, ["compress", "report", "runs/dense", "runs/four", "--plot", "two.svg"])
    assert shown.exit_code == 0
    assert [line.split("|")[1].strip() for line in shown.stdout.splitlines()[2:4]] == ["dense", "four"]
    assert "‖W − Ŵ‖²" in Path("two.svg").read_text()


def test_a_plain_checkpoint_can_be_written(run: Callable) -> None:
    run("methods=[{name: rtn, bits: 4, run: 64}]", "name=four")
    assert CliRunner().invoke(app, ["compress", "export", "runs/four", "plain"]).exit_code == 0
    assert Path("plain/model.safetensors").is_file()
    again = CliRunner().invoke(app, ["compress", "export", "runs/four", "plain"])
    assert isinstance(again.exception, UserError)


def test_an_export_that_is_refused_leaves_nothing_behind(run: Callable) -> None:
    run("methods=[nf4]", "methods=[{name: nf4, run: 64}]", "name=four")
    refused = CliRunner().invoke(app, ["compress", "export", "runs/four", "packed", "--compressed-tensors"])
    assert isinstance(refused.exception, UserError)
    assert not Path("packed").exists()


def test_what_is_done_is_not_done_again(run: Callable) -> None:
    first = run("methods=[{name: rtn, run: 64}]")
    assert run("methods=[{name: rtn, run: 64}]", "--resume") == first
    with pytest.raises(UserError, match="holds a run already"):
        run("methods=[{name: rtn, run: 64}]")
    with pytest.raises(UserError, match="was started with another methods"):
        run("methods=[{name: rtn, run: 32}]", "--resume")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["methods=[rnt]"], "there is no 'rnt' in compress; did you mean 'rtn'"),
        (["methods=[{name: rtn, bit: 4}]"], "'rtn' has no option 'bit'; did you mean 'bits'"),
        (["methods=[wanda]"], "either `pattern`"),
        (["methods=[{name: wanda, share: 0.5}]", "calibration=null"], "'wanda' looks at calibration text"),
        (["methods=[{name: rtn, run: 0}, codewords]"], "there are none: put vq or mvq"),
        (["methods=[rtn]"], "rows of 64 weights are no multiple of runs of 128"),
        (["methods=[]", "calibration.data=[{name: chain, count: 60}]"], "has no solution: calibration and evaluated_on"),
        (["methods=[]", "calibration.rows=100000"], "ask for fewer"),
        (["methods=[]", "lora={rank: 4}"], "leave out lora, quantised_base"),
        (["methods=[]", "keep_dense=[lm_had]"], "names 'lm_had'"),
        (
            ["methods=[{name: rtn, run: 0, activations: 8}]", f"eval={{data: {TEXT}}}"],
            "rounds activations, which no engine does",
        ),
        (["methods=[{name: rtn, run: 0, activations: 8}, prequant]"], "'prequant' learns, which it cannot through rounded"),
        (["methods=[{name: magnitude, pattern: [4, 8]}, prequant]"], "would bring back what was pruned"),
        (["methods=[]", "calibration.length=600"], "more than the model's context of 512"),
    ],
)
def test_nonsense_is_refused(run: Callable, arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        run(*arguments)


def test_each_job_has_its_verb(run: Callable) -> None:
    with pytest.raises(UserError, match="of job: rl: rlcore train quickstart"):
        raise CliRunner().invoke(app, ["compress", "quickstart"]).exception  # type: ignore[misc]
    with pytest.raises(UserError, match="rlcore compress compress/rtn"):
        raise CliRunner().invoke(app, ["train", "compress/rtn"]).exception  # type: ignore[misc]
    Path("other").mkdir()
    Path("other/summary.json").write_text("{}")
    with pytest.raises(UserError, match="no run of job: compress"):
        raise CliRunner().invoke(app, ["compress", "report", "other"]).exception  # type: ignore[misc]


def test_a_dry_run_says_what_would_be_compressed(run: Callable) -> None:
    shown = CliRunner().invoke(app, ["compress", "tiny.yaml", "methods=[{name: rtn, run: 64}]", "--dry-run"])
    assert "to compress: 14 matrices" in shown.stdout
    assert "calibration: 8 rows of 32 tokens" in shown.stdout
    assert not Path("runs").exists()
