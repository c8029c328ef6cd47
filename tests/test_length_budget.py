"""Length budgets: the worked numbers, what they depend on, who is told them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from rlcore.data.sources.chain import chain
from rlcore.errors import UserError
from rlcore.evaluation.during import PeriodicEvaluation
from rlcore.length_budget import budget_of, for_evaluation, for_training
from rlcore.preview import preview
from rlcore.prompts import Prompter
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL, Decay, LengthBudget, Prompt
from rlcore.types import Group, Problem, Score, Scored
from rollout.scripted import Scripted
from trainers.plan import plan

UNIFORM = LengthBudget(uniform=(100, 4000))
DECAY = LengthBudget(decay=Decay(start=256))
PROBLEMS = chain(count=400)
TELLS = "prompt.template='{problem}+{budget}'"


def budgets(spec: LengthBudget, step: int = 1, seed: int = 0, given: Callable = for_training) -> list[int]:
    return [budget_of(given(problem, spec, seed, step)) for problem in PROBLEMS]


def test_the_worked_example_of_decay() -> None:
    """Four stages of 150 steps, for every problem alike."""
    told = {step: budgets(DECAY, step) for step in (1, 150, 151, 300, 301, 450, 451, 600)}
    assert {step: set(each) for step, each in told.items()} == {
        **{1: {256}, 150: {256}, 151: {179}, 300: {179}},
        **{301: {125}, 450: {125}, 451: {87}, 600: {87}},
    }


def test_a_budget_never_falls_below_a_token_and_is_rounded_down_as_by_hand() -> None:
    assert set(budgets(DECAY, 10**6)) == {1}
    assert set(budgets(LengthBudget(decay=Decay(start=100, factor=0.29, every=1)), 2)) == {29}


def test_what_is_drawn_is_uniform_over_the_range_with_both_its_ends() -> None:
    drawn = budgets(UNIFORM)
    assert all(100 <= budget <= 4000 for budget in drawn)
    assert sum(drawn) / len(drawn) == pytest.approx(2050, abs=4 * 3900 / 12**0.5 / 20)  # four standard errors
    assert set(budgets(LengthBudget(uniform=(7, 9)))) == {7, 8, 9}


def test_it_depends_on_seed_step_and_problem_and_on_nothing_else() -> None:
    first = budgets(UNIFORM, step=3, seed=1)
    assert budgets(UNIFORM, step=3, seed=1) == first
    for other in (budgets(UNIFORM, step=4, seed=1), budgets(UNIFORM, step=3, seed=2), first[1:]):
        assert sum(a == b for a, b in zip(first, other, strict=False)) < 5


def test_evaluations_have_one_budget_for_each_problem_or_that_of_the_step_they_follow() -> None:
    """Another draw than in training, as that depends on the step."""
    assert budgets(UNIFORM, 0, given=for_evaluation) == budgets(UNIFORM, 99, given=for_evaluation) != budgets(UNIFORM, 99)
    told = [budgets(DECAY, step, given=for_evaluation)[0] for step in (0, 1, 150, 151, 600)]
    assert told == [256, 256, 256, 179, 87]


def test_what_a_problem_knows_besides_stays_and_without_a_section_it_is_as_it_was() -> None:
    problem = Problem("p", "1+1", "2", meta={"level": 3, "budget": 5})
    assert for_training(problem, None, 0, 1) is for_evaluation(problem, None, 0, 1) is problem
    assert for_training(problem, DECAY, 0, 1).meta == {"level": 3, "budget": 256}


# -- who is told ---------------------------------------------------------------------------------------------------------


def test_the_prompt_tells_it_and_an_example_is_told_what_its_answer_takes(tokenizer: PreTrainedTokenizerBase) -> None:
    """`2` and the end of the turn are two tokens. What a problem's own text says is left alone."""
    spec = Prompt(template="{problem}+{budget}", examples=[{"prompt": "1+1", "answer": "2"}])
    prompter = Prompter(spec, tokenizer)
    assert prompter.text(Problem("p", "{budget}-1", "", meta={"budget": 60})) == "1+1+2\n2\n\n{budget}-1+60\n"
    with pytest.raises(UserError, match="the length budget of p is None"):
        prompter.text(Problem("p", "3+5", ""))


def test_evaluation_asks_with_budgets(tokenizer: PreTrainedTokenizerBase) -> None:
    """The same weights, after different steps; and what was asked is what the policy read."""
    recipe = load(["quickstart", TELLS, "length_budget={decay: {start: 60, factor: 0.5, every: 2}}", "eval.every=1"]).recipe
    assert isinstance(recipe, RL)
    told: list[list[int]] = []

    def verify(groups: Sequence[Group]) -> list[Score]:
        told.append([budget_of(group.problem) for group in groups])
        for group in groups:
            expected = f"{group.problem.prompt}+{budget_of(group.problem)}\n"
            assert tokenizer.decode(group.completions[0].prompt_ids, skip_special_tokens=True) == expected
        return [Scored(1.0) for group in groups for _ in group.completions]

    engine = Scripted(tokenizer, lambda _: "#### 1")
    evaluation = PeriodicEvaluation(recipe, PROBLEMS[:2], engine, Prompter(recipe.prompt, tokenizer), verify)
    for step in (0, 2, 3):
        evaluation(step)
    evaluation.thorough(step=5)
    temperatures = len({1.0, *recipe.eval.temperatures}) if recipe.eval else 0
    assert told == [[60, 60], [60, 60], [30, 30], *[[15, 15]] * temperatures]


def test_the_dry_run_tells_it_and_counts_with_the_largest(tiny: Path) -> None:
    """One problem, whose budget in the first step has a digit less than the largest."""

    def lines(section: str) -> list[str]:
        recipe = load(["quickstart", f"model={tiny}", "steps=600", "data.count=1", "eval=null", TELLS, section]).recipe
        return list(preview(recipe))

    drawn, decaying = lines("length_budget={uniform: [1, 16]}"), lines("length_budget={decay: {start: 64}}")
    [problem] = chain(count=1)
    first = budget_of(for_training(problem, LengthBudget(uniform=(1, 16)), 0, 1))
    assert first < 10
    assert "length budget: 1 to 16 tokens, drawn for each problem of each step" in drawn
    assert f"first prompt, {len(problem.prompt) + 3} tokens: {f'{problem.prompt}+{first}' + chr(10)!r}" in drawn
    assert "length budget: 64 tokens at first, 21 in step 600" in decaying
    for told in (drawn, decaying):
        assert f"longest sequence: {len(problem.prompt) + 4 + 64}" in told


# -- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([TELLS], r"prompt.template tells \{budget\}, and the recipe gives no budgets: add `length_budget`"),
        (["rewards=[answer, lcpo_max]"], r"reward 'lcpo_max' reads length budgets, and the recipe gives none: add `length_bud"),
        (["length_budget={uniform: [8, 64]}"], r"length_budget changes nothing: write \{budget\} into prompt.template"),
        ([TELLS, "length_budget={}"], r"'length_budget': a length budget is either `uniform` or `decay`"),
        ([TELLS, "length_budget={uniform: [1, 2], decay: {start: 9}}"], r"either `uniform` or `decay`: set one of them"),
        ([TELLS, "length_budget={uniform: [64, 8]}"], r"uniform \[64, 8\] is not \[low, high\]"),
        ([TELLS, "length_budget={uniform: [0, 8]}"], r"'length_budget.uniform.0': input should be greater than 0"),
        ([TELLS, "length_budget={decay: {start: 9, factor: 1}}"], r"'length_budget.decay.factor': input should be less than 1"),
        ([TELLS, "length_budget={decay: {strat: 9}}"], r"unknown key 'length_budget.decay.strat'; did you mean 'start'\?"),
        ([TELLS, "length_budget={uniform: [8, 65]}"], r"goes up to 65 tokens, and completions are cut at .*max_new_tokens 64"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(load(["quickstart", "data.count=20", "eval=null", *overrides]).recipe)  # type: ignore[arg-type]


@pytest.mark.parametrize("overrides", [[TELLS], ["rewards=[triangle]"], [TELLS, "rewards=[answer, lcpo_exact]"]])
def test_a_budget_that_is_told_or_read_is_enough(overrides: list[str]) -> None:
    recipe = load(["quickstart", "data.count=20", "eval=null", "length_budget={uniform: [8, 64]}", *overrides]).recipe
    assert isinstance(recipe, RL)
    plan(recipe).rewards.close()


def test_other_jobs_have_no_budgets_to_tell() -> None:
    for name in ("toy/chain", "annotate_chain"):
        with pytest.raises(UserError, match=r"'prompt': the template tells \{budget\}, and only a recipe of `job: rl` gives"):
            load([name, TELLS])
