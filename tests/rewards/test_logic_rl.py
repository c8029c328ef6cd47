"""Logic-RL's pay (arXiv 2502.14768): its four values for puzzles and for mathematics, as sums of a real run's components."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rewards.compose import Rewards
from rewards.verifiable.logic_rl import LogicRl
from rlcore import jobs
from rlcore.data.sources.knights import knights
from rlcore.errors import UserError
from rlcore.grading.roles import cast
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL, Component
from rlcore.types import Completion, Group, Problem, Sampling, Scored

PUZZLE = Problem("p", "", "Ann is a knight, Ben is a knave, Cem is a knight", "roles")
SUM = Problem("p", "", "5")


def group(problem: Problem, *texts: str) -> Group:
    completions = [
        Completion("p", n, 0, (1,), (2,), (1,), (0.0,), (0,), Sampling(), "stop", text) for n, text in enumerate(texts)
    ]
    return Group(problem, completions)


def form(answer: str) -> str:
    return f"<think>Let me see.</think>\n<answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("problem", "text", "paid"),
    [
        (PUZZLE, form(PUZZLE.answer), 3),
        (PUZZLE, form("(1) Cem is a knight\n(2) Ben is a knave\n(3) Ann is a knight"), 3),
        (PUZZLE, form(PUZZLE.answer.replace("knave", "knight")), -0.5),
        (PUZZLE, form("Ann is a knight, Ben is a knave"), -1),  # a person without a role
        (PUZZLE, form(f"{PUZZLE.answer}, or all are knights"), -1),  # a role without a person
        (PUZZLE, form("Ann is a knight, Ben is a knave, Ben is a knight"), -1),
        (PUZZLE, form("Ann is a knight, Ben is a knave, Dan is a knight"), -1),
        (PUZZLE, form(""), -1),
        (PUZZLE, f"<answer>{PUZZLE.answer}</answer>", -3),
        (PUZZLE, form(PUZZLE.answer) + "</answer>", -3),
        (PUZZLE, f"<answer>{PUZZLE.answer}</answer><think></think>", -3),
        (PUZZLE, "", -3),
        (SUM, form("5.0"), 3),
        (SUM, form("6"), -0.5),
        (SUM, form("no idea"), -0.5),
        (SUM, form(""), -1),
        (SUM, "The answer is 5.", -3),
    ],
)
def test_the_sum_is_the_papers(problem: Problem, text: str, paid: float) -> None:
    """With the components that the docstring and the recipe name: `answer` judges, and is paid nothing."""
    recipe = load(["grpo_knights"]).recipe
    assert isinstance(recipe, RL)
    rewards = Rewards(recipe.rewards, max_invalid_fraction=0.0)
    graded = rewards.grade([group(problem, text, text)])
    rewards.close()
    assert graded.batch.totals.tolist() == [paid, paid]
    by_component = {row["component"]: row["weighted"] for row in graded.ledger}
    assert by_component == {"answer": 0, "logic_rl": paid}


def test_the_numbers_are_knobs() -> None:
    reward = LogicRl(format=0.5, right=1, wrong=0, unreadable=0)
    texts = form(PUZZLE.answer), form("Ann is a knave, Ben is a knave, Cem is a knight"), form("hm"), "hm"
    judged = Group(PUZZLE, group(PUZZLE, *texts).completions, (1.0, 0.0, 0.0, 0.0))
    assert [score.value for score in reward.score([judged], None) if isinstance(score, Scored)] == [1.5, 0.5, 0.5, -0.5]
    for wrong in ({"right": -1.5}, {"wrong": -3.0}):
        with pytest.raises(UserError, match="logic_rl: not right > wrong >= unreadable"):
            LogicRl(**wrong)


def test_a_right_answer_in_broken_form_is_not_correct() -> None:
    """Short, and without thoughts, it counts neither in the lengths that Short-RL compares nor in accuracy; and it says why."""
    recipe = load(["grpo_knights"]).recipe
    assert isinstance(recipe, RL)
    short_rl = Component(name="short_rl", length_tolerance=0)  # type: ignore[call-arg]
    rewards = Rewards([*recipe.rewards, short_rl], max_invalid_fraction=0.0)
    texts = [f"<answer>{PUZZLE.answer}</answer>", form(PUZZLE.answer), form(PUZZLE.answer), form("hm")]
    told = group(PUZZLE, *texts)
    lengths = [n * 10 for n in (1, 2, 4, 5)]
    completions = [
        replace(c, token_ids=(2,) * n, loss_mask=(1,) * n, logprobs=(0.0,) * n, versions=(0,) * n)
        for c, n in zip(told.completions, lengths, strict=True)
    ]
    graded = rewards.grade([replace(told, completions=completions)])
    rewards.close()
    of = {name: [r for r in graded.ledger if r["component"] == name] for name in ("answer", "logic_rl", "short_rl")}
    assert {name: [row["value"] for row in rows] for name, rows in of.items()} == {
        "answer": [0, 1, 1, 0],
        "logic_rl": [-3, 3, 3, -1],
        "short_rl": [0, 0.5, -0.5, 0],
    }
    assert of["answer"][0]["reason"] == "right, in another form: 0 times <think>"
    assert rewards.update(graded)["short_rl/best_accuracy"].value == 0.5


def test_a_run_that_verifies_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no reward component is verifiable: add `answer`"):
        Rewards([Component(name="logic_rl")], max_invalid_fraction=0.0).grade([group(PUZZLE, "a", "b")])


@pytest.mark.parametrize("people", range(3, 9))
def test_every_puzzle_of_the_setting_has_an_answer_that_is_read(people: int) -> None:
    for puzzle in knights(people=people, count=5):
        said = cast(puzzle.answer, puzzle.answer)
        assert said is not None
        assert len(said) == people


def test_the_recipe_runs_on_a_tiny_model(tiny: Path, tmp_path: Path) -> None:
    """As shipped, but for the model, the length and the number of people; the tiny model's context is a puzzle of three."""
    shrunken = [
        f"model={tiny}",
        f"output={tmp_path / 'knights'}",
        "steps=1",
        "threads=1",
        "rollout.max_new_tokens=8",
        "prompt={system: ''}",
        "data={people: 3, count: 20}",
        "eval.data={people: 3, count: 4}",
    ]
    jobs.run(load(["grpo_knights", *shrunken]), resume=False)
    [step] = [row for row in map(json.loads, (tmp_path / "knights/metrics.jsonl").open()) if "reward/logic_rl" in row]
    assert step["reward"] == step["reward/logic_rl"] == -3  # it knows no tags
    assert step["accuracy"] == 0
