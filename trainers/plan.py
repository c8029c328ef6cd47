"""What an RL recipe asks for, as far as it can be made, and refused, without a model. Shared by launch and dry run."""

from __future__ import annotations

from dataclasses import dataclass

from rewards.compose import Rewards
from rlcore.data.mixture import Mixture
from rlcore.data.mixture import load as load_problems
from rlcore.data.overlap import refuse_overlap
from rlcore.errors import UserError
from rlcore.recipe.schema import RL
from rlcore.types import Problem
from trainers import algorithm
from trainers.algorithm import Advantage
from trainers.objective import Objective


@dataclass(frozen=True)
class Plan:
    advantage: Advantage
    objective: Objective
    rewards: Rewards
    problems: Mixture
    held_out: list[Problem]  # empty where the recipe has no `eval`


def plan(recipe: RL) -> Plan:
    """Raises UserError for anything in the recipe that cannot work. The caller closes the rewards."""
    advantage, objective = algorithm.advantage(recipe), algorithm.objective(recipe)
    rewards = Rewards(recipe.rewards, recipe.algorithm.max_invalid_fraction)
    if rewards.verifiable is None and (recipe.eval or recipe.algorithm.dynamic_sampling):
        raise UserError("evaluation and dynamic sampling read accuracy, and no reward component is verifiable: add `answer`")
    problems = Mixture(recipe.data, recipe.seed)
    held_out = load_problems(recipe.eval.data)[: recipe.eval.limit] if recipe.eval else []
    refuse_overlap(problems.problems, held_out)
    return Plan(advantage, objective, rewards, problems, held_out)
