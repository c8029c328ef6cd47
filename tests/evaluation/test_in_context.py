"""`job: in_context`, from its episodes to the page."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rlcore import jobs, preview
from rlcore.errors import UserError
from rlcore.evaluation import in_context
from rlcore.models import context, load_tokenizer
from rlcore.prompts import Prompter
from rlcore.recipe.load import load
from rlcore.recipe.schema import Example, InContext, Prompt
from rlcore.repro import in_context as kind
from rlcore.repro import page
from rlcore.repro.experiment import Experiment, plan, read
from rlcore.types import Problem

SMALL = ["data.count=8", "episodes=4", "demonstrations=[1, 3]", "device=cpu"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def asked(tiny: Path, *more: str) -> InContext:
    recipe = load(["eval/in_context", f"model={tiny}", *SMALL, *more]).recipe
    assert isinstance(recipe, InContext)
    return recipe


def planned(recipe: InContext) -> list[in_context.Episode]:
    return in_context.plan(recipe, Prompter(recipe.prompt, load_tokenizer(recipe.model)), context(recipe.model))


def test_blocks_side_by_side_are_a_few_shot_prompt(tiny: Path) -> None:
    """What the prompter writes of examples for a base model, token for token."""
    recipe = asked(tiny)
    tokenizer = load_tokenizer(recipe.model)
    problem = Problem("", "c", "7", meta={"demonstrations": [("a", "3"), ("b", "7")], "labels": ["3", "7"]})
    episode = in_context._episode(
        problem, Prompter(recipe.prompt, tokenizer), InContext.model_fields["written"].default, most=2
    )
    examples = [Example(prompt="a", answer="3"), Example(prompt="b", answer="7")]
    whole = Prompter(Prompt(system=recipe.prompt.system, examples=examples), tokenizer).render(problem)
    assert (*episode.prefix, *(token for each in episode.demonstrations for token in each.block), *episode.query) == whole
    assert (episode.answer, [tokenizer.decode(label) for label in episode.labels]) == (1, ["3", "7"])


def test_a_model_is_measured(tiny: Path) -> None:
    loaded = load(["eval/in_context", f"model={tiny}", *SMALL])
    lines = list(preview.preview(loaded.recipe))
    assert lines[0] == "4 episodes; demonstrations: 1, 3"
    assert lines[2].startswith("first prompt, ")
    summary = jobs.run(loaded, resume=False)
    assert json.loads(Path(loaded.recipe.folder, "summary.json").read_text()) == summary
    found = {name: summary[name] for name in kind.metrics(loaded.recipe)}
    assert len(found) == 3 * 3 * 2
    assert all(0 <= value <= 1 for value in found.values())
    for layout in ("repeated", "rdsca"):  # one demonstration has no replica
        assert all(found[f"{what}_{layout}_1"] == found[f"{what}_plain_1"] for what in kind.QUANTITIES)
        assert found[f"own_{layout}_3"] != found["own_plain_3"]
    assert Path(loaded.recipe.folder, "report.html").is_file()


def test_the_seed_draws_the_episodes(tiny: Path) -> None:
    first, same, other = (planned(asked(tiny, f"seed={seed}")) for seed in (0, 0, 1))
    assert first == same != other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data={name: chain, count: 8}"], "problem chain/train/. has no demonstrations and labels"),
        (["data.demonstrations=2"], "has 2 demonstrations, and 3 are asked for"),
        (["data.count=3"], "data has 3 episodes, and episodes is 4"),
        (["data.demonstrations=90", "demonstrations=[90]"], "and the model's context is 512: lower demonstrations"),
        (["model=smollm2-135m"], "set prompt.chat=plain"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny: Path, changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(preview.preview(asked(tiny, *changes)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("demonstrations=[2, 2]", "names one twice"),
        ("layouts=[plian]", "layouts"),
        ("written='{answer}{problem}'", "{answer} once behind it"),
        ("prompt.examples=[{prompt: a, answer: b}]", "no layout knows of"),
        ("lora={rank: 2}", "nothing is trained"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tiny: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        asked(tiny, change)


def test_the_shipped_experiment_is_measured_and_drawn(tiny: Path) -> None:
    name, experiment = read("rdsca")
    claims = {"c": "own_repeated_3[toy] - own_plain_3[toy] > 0"}
    arms = {arm: layers for arm, layers in experiment.arms.items() if arm.startswith("toy")}
    base = [*experiment.base, f"model={tiny}", *SMALL]
    small = Experiment.model_validate({**experiment.model_dump(), "base": base, "arms": arms, "claims": claims})
    results = {}
    for run in plan(name, small, [100]):
        jobs.run(load([word for word in run.command if word not in ("train", "--resume")]), resume=False)
        results[run.name] = {100: kind.collect(run.folder, run.recipe, experiment.target)}
    assert set(results) == set(arms)
    text = page.write(page.document(name, small, results, command="c", models={})).read_text()
    assert f"## {experiment.title}" in text
    assert "| toy, accuracy | rdsca |" in text
    drawn = {element.text for element in ElementTree.parse("docs/results/rdsca.svg").iter()}
    assert {"plain", "repeated", "rdsca", "demonstrations, toy", "accuracy", "probability of own label"} <= drawn
