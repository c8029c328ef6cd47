"""Arms that learn from solutions: the shipped experiment on two steps of each arm, and the page of results by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rlcore import jobs
from rlcore.errors import UserError
from rlcore.recipe.load import load
from rlcore.recipe.schema import Sft
from rlcore.repro import page, supervised
from rlcore.repro.experiment import Experiment, Planned, plan, plan_models, read
from rlcore.repro.results import Result
from rlcore.repro.run import _made

SMALL = ["data.count=8", "batch_size=4"]


def do(run: Planned, *layers: str) -> None:
    given = [word for word in run.command if word not in ("train", "compress", "--resume")]
    jobs.run(load([*given, *layers]), resume=False)


def test_every_arm_runs_and_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLCORE_CACHE_DIR", str(tmp_path / "cache"))
    name, experiment = read("mom")
    for model in plan_models(experiment):
        do(model, *(SMALL if isinstance(model.recipe, Sft) else ["evaluated_on=[]"]))
        assert all(file.is_file() for file in _made(model))
    results = {}
    for run in plan(name, experiment, [100]):
        do(run, *SMALL, "evaluated_on.count=6")
        results[run.name] = {100: supervised.collect(run.folder, run.recipe, experiment.target)}
    text = page.write(page.document(name, experiment, results, command="c", models={})).read_text()
    assert f"## {experiment.title}" in text
    result = json.loads(Path("docs/results/mom.json").read_text())
    assert result["kind"] == "supervised"
    found = {arm: {metric: of["mean"] for metric, of in values.items()} for arm, values in result["arms"].items()}
    assert all(value is not None for values in found.values() for value in values.values())
    vanilla, same, deeper, skipping = (found[arm] for arm in ("vanilla", "mom_same_depth", "mom_deeper", "mom_skipping"))
    assert (vanilla["layers"], vanilla["depth"], vanilla["skipped"]) == (4, 4, 0)
    assert (same["depth"], deeper["depth"], skipping["depth"]) == (4, 6, 4)
    assert same["parameters"] == deeper["parameters"] == skipping["parameters"]
    assert skipping["flops"] < same["flops"] < deeper["flops"]
    for arm, rounds, chosen in (("mom_same_depth", 2, 2), ("mom_deeper", 4, 2), ("mom_skipping", 2, 1)):
        curve = result["curves"][arm]["100"]
        assert [len(curve[kind]) for kind in ("attention", "feed_forward")] == [rounds, rounds]
        assert all(sum(shares) == pytest.approx(chosen) and len(shares) == 3 for shares in curve["attention"])
    assert result["curves"]["vanilla"]["100"] == {}
    drawn = {element.text for element in ElementTree.parse("docs/results/mom.svg").iter()}
    assert set(experiment.arms) | {"SKIP", "forward FLOPs a token"} <= drawn


def by_hand(losses: dict[str, Sequence[float]]) -> dict:
    experiment = Experiment(
        title="By hand",
        about="About.",
        base=["toy/chain-steps"],
        arms={arm: [] for arm in losses},
        seeds=[100, 101, 102],
        claims={"c": f"loss[{next(iter(losses))}] > 0"},
        tried="nothing",
    )
    results = {
        arm: {
            seed: Result(dict.fromkeys(supervised.METRICS) | {"loss": loss, "flops": 1e6}, {}, 1.0)
            for seed, loss in zip(experiment.seeds, of, strict=True)
        }
        for arm, of in losses.items()
    }
    return page.document("by-hand", experiment, results, command="c", models={})


def test_the_lowest_loss_is_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.write(by_hand({"high": [0.6, 0.7, 0.8], "low": [0.1, 0.2, 0.3]})).read_text()
    arms = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith(("| high", "| low"))]
    assert arms == ["low", "high"]
    assert "Lowest held-out loss: low; every other arm is above it (paired differences of seeds)." in text


def test_an_arm_that_predicts_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.yaml"
    path.write_text(
        "title: t\nabout: a\nbase: [toy/chain-steps]\narms: {one: []}\nseeds: [100]\nclaims: {c: 'loss[one] < 1'}\ntried: n\n"
    )
    with pytest.raises(UserError, match="arm 'one' cannot be measured: a recipe of job: sft needs `evaluated_on`"):
        plan(*read(str(path)), [100])
