"""The length budget of a problem: how many tokens its completions are to take. `{budget}` in `prompt.template` tells it to the
policy, and rewards read it (`lcpo_exact`, `lcpo_max` and `triangle` in `rewards/length`).

    uniform    B is drawn from {low, …, high}        L1 (Aggarwal & Welleck 2025, arXiv 2503.04697): 100 to 4000
    decay      B(t) = max(1, ⌊B₀·γ^⌊t/T⌋⌋)           Train Long, Think Short (Hammoud et al. 2025, arXiv 2508.08940)

t is the number of steps before this one. Worked: `start` B₀ = 256, `factor` γ = 0.7 and `every` T = 150 give 256 tokens in
steps 1 to 150, then 179, 125 and, in steps 451 to 600, 87.

A budget is a function of the run's seed, the problem, and the step that begins to sample it: where sampling runs ahead, an
earlier one than trains on it. So a resumed run has the same. In evaluations what is drawn depends on their seed and the problem
alone, and is the same in every one; where budgets decay, an evaluation has that of the step it follows.
"""

from __future__ import annotations

import random
from dataclasses import replace

from rlcore.errors import UserError
from rlcore.recipe.schema import Decay, LengthBudget
from rlcore.types import Problem, seed_from


def budget_of(problem: Problem) -> int:
    """Raises UserError where it has none."""
    budget = problem.meta.get("budget")
    if not isinstance(budget, int) or budget < 1:
        raise UserError(
            f"the length budget of {problem.id} is {budget}, and not a number of tokens: add `length_budget` to the recipe (in "
            "TRL: whole numbers in the dataset's column `budget`)"
        )
    return budget


def for_training(problem: Problem, spec: LengthBudget | None, seed: int, step: int) -> Problem:
    """The problem with its budget in a step, the first being 1; as it is where the recipe gives none."""
    return _given(problem, spec, step, ("training", seed, step))


def for_evaluation(problem: Problem, spec: LengthBudget | None, seed: int, step: int) -> Problem:
    """The problem with its budget in an evaluation after so many steps, maybe 0."""
    return _given(problem, spec, max(step, 1), ("evaluation", seed))


def with_largest(problem: Problem, spec: LengthBudget | None) -> Problem:
    """The problem with the largest budget that it can have."""
    return problem if spec is None else _with(problem, spec.largest)


def describe(spec: LengthBudget, steps: int) -> str:
    if spec.decay:
        return f"length budget: {_decayed(spec.decay, 1)} tokens at first, {_decayed(spec.decay, steps)} in step {steps}"
    assert spec.uniform
    low, high = spec.uniform
    return f"length budget: {low} to {high} tokens, drawn for each problem of each step"


def _given(problem: Problem, spec: LengthBudget | None, step: int, key: tuple[object, ...]) -> Problem:
    if spec is None:
        return problem
    if spec.decay:
        return _with(problem, _decayed(spec.decay, step))
    assert spec.uniform
    return _with(problem, random.Random(seed_from("length budget", *key, problem.id)).randint(*spec.uniform))


def _with(problem: Problem, budget: int) -> Problem:
    return replace(problem, meta={**problem.meta, "budget": budget})


def _decayed(spec: Decay, step: int) -> int:
    budget = spec.start * spec.factor ** ((step - 1) // spec.every)
    return max(1, int(budget + 1e-9))  # 100 · 0.29 is 28.999… in floating point
