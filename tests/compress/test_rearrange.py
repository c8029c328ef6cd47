"""A model in another architecture: from a recipe to a folder that other jobs take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from compress.architectures.mixture_of_modules import MixtureOfModules
from compress.compressed import load
from compress.mixture.from_llama import from_llama
from rlcore import jobs
from rlcore.cli.main import app
from rlcore.errors import UserError
from rlcore.models import ModelSpec, configuration
from rlcore.recipe.load import load as load_recipe
from rlcore.repro import compression
from tests.compress.conftest import Done

SETTINGS = dict(blocks=1, rounds=3, bottom=0, top=0, anchor=False, router_dim=8, router_top_k=1)
OPTIONS = ", ".join(f"{key}: {str(value).lower()}" for key, value in SETTINGS.items())


@pytest.fixture
def run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLCORE_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "tiny.yaml").write_text(
        f"job: compress\nmodel: {tiny}\ndevice: cpu\n"
        "evaluated_on: {name: chain, split: test, count: 10, strategies: {steps: 1.0}}\n"
    )

    def invoke(options: str = OPTIONS, after: str = "") -> dict:
        methods = f"methods=[{{name: mixture_of_modules, {options}}}{after}]"
        result = CliRunner().invoke(app, ["compress", "tiny.yaml", methods, "name=mixed", "--json", "out.json"])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return dict(json.loads(Path("out.json").read_text()))

    return invoke


def test_a_mixture_is_made_measured_and_kept(run: Callable, tiny: Path) -> None:
    summary = run()
    assert (summary["bits_per_weight"], summary["compressed_weights"]) == (32, 0)
    assert summary["divergence"] > 0.0001  # its routers are random
    kept = load(Path("runs/mixed/model"))
    assert type(kept.model) is MixtureOfModules
    torch.manual_seed(0)
    wanted = from_llama(ModelSpec(str(tiny), device="cpu").load(), **SETTINGS)
    for name, parameter in wanted.named_parameters():
        assert torch.equal(kept.model.get_parameter(name), parameter), name
    told = compression.collect(Path("runs/mixed"), load_recipe(["tiny.yaml", "methods=[]"]).recipe, 0.0)
    assert told.metrics["error"] is None
    assert told.metrics["solution"] == summary["solution"]


def test_its_folder_is_evaluated_and_trained_on(run: Callable) -> None:
    run()
    source = "{name: chain, count: 8, strategies: {steps: 1.0}}"
    Path("sft.yaml").write_text(f"job: sft\nname: further\nmodel: runs/mixed\nthreads: 1\nbatch_size: 4\ndata: {source}\n")
    assert jobs.run(load_recipe(["sft.yaml"]), resume=False)["steps"] == 2
    assert configuration("runs/further/model").model_type == "mixture_of_modules"
    for model in ("runs/mixed", "runs/further"):
        asked = ["eval", "--model", model, "--data", "{name: chain, count: 3}", "--max-new-tokens", "4"]
        assert CliRunner().invoke(app, [*asked, "--max-invalid-fraction", "1"]).exit_code == 0


def test_its_matrices_can_be_rounded(run: Callable) -> None:
    assert run(after=", {name: rtn, bits: 4, run: 0}")["bits_per_weight"] < 6


def test_what_it_is_not_made_from_is_refused(run: Callable, done: Done) -> None:
    with pytest.raises(UserError, match="another method holds their matrices: put it first"):
        done(("rtn", {"run": 0}), ("mixture_of_modules", SETTINGS))
    with pytest.raises(UserError, match="2 layers do not make 1 at the bottom"):
        run("blocks: 1, rounds: 1, bottom: 1, top: 1")
    with pytest.raises(UserError, match="needs the option 'top'"):
        run("blocks: 1, rounds: 1, bottom: 0")
    with pytest.raises(UserError, match="'mixture_of_modules' has no option 'topk'"):
        run(f"{OPTIONS}, topk: 1")
