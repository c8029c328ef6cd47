"""From a recipe's `algorithm` section to the functions it names, refused before anything is loaded if they cannot work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from rlcore import plugins
from rlcore.batch import Advantages, GradedBatch
from rlcore.errors import UserError
from rlcore.recipe.schema import RL
from trainers.objective import Objective

Need = Literal["groups"]
Advantage = Callable[[GradedBatch], Advantages]


def needs(*what: Need) -> Callable[[Callable[..., Advantages]], Callable[..., Advantages]]:
    """Declare what an advantage cannot do without: `groups` (at least two completions a problem)."""

    def mark(function: Callable[..., Advantages]) -> Callable[..., Advantages]:
        function.needs = what  # type: ignore[attr-defined]
        return function

    return mark


def advantage(recipe: RL) -> Advantage:
    spec = recipe.algorithm.advantage
    bound = plugins.bind("trainers.advantages", spec.name, spec.options)
    if "groups" in getattr(bound.func, "needs", ()) and recipe.rollout.samples < 2:  # type: ignore[attr-defined]
        raise UserError(f"algorithm.advantage {spec.name!r} compares the completions of a problem: set rollout.samples >= 2")
    return bound


def objective(recipe: RL) -> Objective:
    algorithm = recipe.algorithm
    return Objective(
        policy_loss=plugins.bind("trainers.losses", algorithm.loss.name, algorithm.loss.options),
        kl_estimator=algorithm.kl.estimator,
        kl_coefficient=algorithm.kl.coefficient,
        correction=algorithm.correction,
    )
