"""The experiments on length, shrunk to two steps of a random model: every arm runs and is measured, and the page is written."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rlcore import jobs
from rlcore.recipe.load import load
from rlcore.repro import page, training
from rlcore.repro.experiment import plan, read

SMALL = ["steps=2", "data.count=60", "rollout.prompts_per_step=2", "rollout.samples=4", "eval.data.count=4", "eval.every=2"]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("short_rl_math", "short_rl_logic")]  # seven arms each


@pytest.mark.parametrize("name", ["weightings", *SLOW])
def test_every_arm_runs_and_is_measured(name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, experiment = read(name)
    results = {}
    for run in plan(name, experiment, [100]):
        layers = [word for word in run.command if word not in ("train", "--resume")]
        recipe = load([*layers, f"model={tiny}", *SMALL])
        jobs.run(recipe, resume=False)
        results[run.name] = {100: training.collect(run.folder, recipe.recipe, experiment.target)}
    text = page.write(page.document(name, experiment, results, command="c", models={})).read_text()
    assert f"## {experiment.title}" in text
    assert "tokens a completion by training step" in text
    written = json.loads(Path("docs", "results", f"{name}.json").read_text())
    assert list(written["arms"]) == list(experiment.arms)
    for arm in experiment.arms:
        assert written["curves"][arm]["100"]["step"] == [1, 2]
        assert written["arms"][arm]["length_sampled"]["per_seed"]["100"] == pytest.approx(
            sum(written["curves"][arm]["100"]["length_sampled"]) / 2
        )
    assert all(claim["per_seed"]["100"] is not None for claim in written["claims"].values() if "/" in claim["expression"])
    drawn = ElementTree.parse(tmp_path / "docs" / "results" / f"{name}.svg")
    assert set(experiment.arms) <= {element.text for element in drawn.iter()}
