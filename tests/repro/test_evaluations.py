"""Arms that ask a model problems: the shipped recipe on a tiny model, and the shipped experiment from its arms to the page."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rlcore import jobs, preview
from rlcore.errors import UserError
from rlcore.recipe.load import load
from rlcore.repro import evaluations, page
from rlcore.repro.experiment import plan, read

SMALL = ["eval.data.count=6", "eval.samples=4", "eval.max_new_tokens=12", "device=cpu"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_shipped_recipe_measures_a_model(tiny: Path) -> None:
    loaded = load(["eval/chain", f"model={tiny}", *SMALL, "eval.temperature=1.5"])
    assert next(preview.preview(loaded.recipe)) == "6 problems, 4 samples each"
    summary = jobs.run(loaded, resume=False)
    assert json.loads(Path(loaded.recipe.folder, "summary.json").read_text()) == summary
    assert (summary["problems"], summary["samples"]) == (6, 24)
    assert 1 < summary["distinct"] <= 4
    assert 0 <= summary["distinct_correct"] <= summary["distinct"]
    assert Path(loaded.recipe.folder, "report.html").is_file()
    assert jobs.run(loaded, resume=True) == summary  # it is done, and not done again


def test_nothing_is_trained() -> None:
    with pytest.raises(UserError, match="nothing is trained: leave out"):
        load(["eval/chain", "lora={rank: 2}"])


def test_the_arms_of_top_h_differ_in_what_they_sample_from(tiny: Path) -> None:
    """Each truncation but min-p, which leaves a random model's even distribution as it is, takes entropy away, and each as much
    as no other; the page has all of them."""
    name, experiment = read("top_h")
    arms = {arm: layers for arm, layers in experiment.arms.items() if arm.endswith("_at_2")}
    claims = {"c": "accuracy[top_h_at_2] - accuracy[min_p_at_2] > 0"}
    experiment = experiment.model_copy(update={"arms": arms, "claims": claims})
    results = {}
    for run in plan(name, experiment, [100]):
        given = [word for word in run.command if word not in ("train", "--resume")]
        jobs.run(load([*given, f"model={tiny}", *SMALL]), resume=False)
        results[run.name] = {100: evaluations.collect(run.folder, run.recipe, experiment.target)}
    entropy = {arm: found[100].metrics["entropy"] for arm, found in results.items()}
    plain, *cut = (entropy[f"{way}_at_2"] for way in ("plain", "top_p", "top_h", "top_h_normalized"))
    assert cut == sorted(set(cut), reverse=True)
    assert cut[0] < plain == entropy["min_p_at_2"]
    result = page.document(name, experiment, results, command="c", models={})
    text = page.write(result).read_text()
    assert f"## {experiment.title}" in text
    assert result["kind"] == "evaluations"
    drawn = {element.text for element in ElementTree.parse("docs/results/top_h.svg").iter()}
    assert set(arms) | {"different right ones", "accuracy", "one of k is right"} <= drawn


def test_metrics_that_k_names_have_a_name_for_claims(tmp_path: Path) -> None:
    recipe = load(["eval/chain", "eval.samples=8"]).recipe
    (tmp_path / "summary.json").write_text(json.dumps({"accuracy": 0.5, "pass@8": 0.75, "maj@8": 0.6, "wall_s": 2.0}))
    found = evaluations.collect(tmp_path, recipe, target=0.7)
    assert {name: value for name, value in found.metrics.items() if value is not None} == dict(
        accuracy=0.5, pass_at_k=0.75, majority=0.6
    )
    assert found.elapsed_s == 2.0
