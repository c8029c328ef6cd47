"""Reasoning Gym tasks as problems: every one of them can be graded by the task's own check, from JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from rlcore.data.mixture import Mixture, load
from rlcore.data.sources.gym import CHUNK, gym
from rlcore.errors import UserError
from rlcore.recipe.schema import Source
from rlcore.types import Problem

reasoning_gym = pytest.importorskip("reasoning_gym", reason="needs reasoning-gym: pip install 'rlcore[cpu]'")


@pytest.mark.parametrize(
    "task", ["chain_sum", "countdown", "gsm_symbolic", "knights_knaves", "maze", "syllogism", "word_ladder"]
)
def test_the_tasks_own_check_accepts_the_answer_after_json(task: str) -> None:
    score = reasoning_gym.get_score_answer_fn(task)
    for problem in gym(task=task, count=20):
        entry = json.loads(json.dumps(problem.meta["entry"]))
        assert entry == problem.meta["entry"]
        assert problem.meta["task"] == task
        assert problem.grader == "gym"
        assert problem.prompt == entry["question"]
        assert score(problem.answer, entry) == 1.0


def test_config_reaches_the_task() -> None:
    for problem in gym(task="chain_sum", count=20, config={"min_terms": 6, "max_terms": 6}):
        assert problem.meta["entry"]["metadata"]["num_terms"] == 6


def test_the_seed_alone_decides() -> None:
    first = gym(task="chain_sum", count=30)
    assert gym(task="chain_sum", count=30) == first
    assert gym(task="chain_sum", count=60)[:30] == first


def test_neighbouring_seeds_share_next_to_nothing() -> None:
    """The library draws problem n with seed + n: passed on as they are, seeds 0 and 1 would share all problems but one."""
    config = {"min_digits": 3, "max_digits": 4, "min_terms": 4}
    prompts = [{p.prompt for p in gym(task="chain_sum", count=100, seed=seed, config=config)} for seed in (0, 1)]
    assert not prompts[0] & prompts[1]


def test_a_small_space_is_drawn_without_repeats_and_cut_between_train_and_test() -> None:
    """Sums of two digits: 200 questions in all, which both splits together exhaust."""
    config = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    train = {p.prompt for p in gym(task="chain_sum", count=90, config=config)}
    test = {p.prompt for p in gym(task="chain_sum", count=20, config=config, split="test")}
    assert len(train) == 90
    assert len(test) == 20
    assert not train & test
    with pytest.raises(UserError, match=r"gym chain_sum: only \d+ distinct test problems can be drawn, 500 were asked for"):
        gym(task="chain_sum", count=500, config=config, split="test")


def test_tasks_that_hold_a_fixed_number_of_problems_go_on_beyond_it() -> None:
    problems = gym(task="list_functions", count=CHUNK + 20)
    assert len({p.prompt for p in problems}) == len({p.id for p in problems}) == CHUNK + 20


def test_a_task_without_a_single_answer_has_an_empty_one() -> None:
    [problem] = gym(task="graph_color", count=1)
    assert problem.answer == ""
    assert "unusable" not in problem.meta


def test_a_problem_whose_check_refuses_its_own_answer_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_some(self: Any, answer: str, entry: Mapping[str, Any]) -> float:
        return float(entry["metadata"]["source_index"] % 4 > 0)

    monkeypatch.setattr("reasoning_gym.arithmetic.basic_arithmetic.BasicArithmeticDataset.score_answer", refuse_some)
    source = Source(name="gym", task="basic_arithmetic", count=40)
    refused = sum(p.meta["entry"]["metadata"]["source_index"] % 4 == 0 for p in _all(source))
    [line] = Mixture([source], seed=0).describe()
    assert line == (
        f"gym (weight 1): 40 problems read, {40 - refused} kept, "
        f"{refused} dropped: the task's check refuses the task's own answer"
    )
    assert len(load([source])) == 40 - refused


def _all(source: Source) -> list[Problem]:
    return gym(**source.options)


@pytest.mark.parametrize("task", ["arc_agi", "rearc"])  # their checks compare tuples, which JSON turns into lists
def test_a_task_that_cannot_be_graded_is_refused(task: str) -> None:
    with pytest.raises(UserError, match="has no problem that can be graded: the task's check refuses"):
        load([Source(name="gym", task=task, count=3)])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "chain_summ"}, "gym: there is no task 'chain_summ'; did you mean 'chain_sum'?"),
        ({"task": "chain_sum", "config": {"min_term": 2}}, "has no 'min_term'; did you mean 'min_terms'?"),
        ({"task": "chain_sum", "config": {"seed": 2}}, "has no 'seed'"),
        ({"task": "chain_sum", "config": {"min_terms": 0}}, "gym: task 'chain_sum' refuses its config: "),
        ({"task": "chain_sum", "split": "dev"}, "'gym' has no split 'dev'"),
        ({"task": "chain_sum", "count": 0}, "gym chain_sum: count must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_made_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        gym(**options)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(UserError, match=r"pip install 'rlcore\[cpu\]'"):
        gym(task="chain_sum")


def test_what_tasks_print_is_kept_from_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    gym(task="codeio", count=60)
    assert capsys.readouterr().out == ""
