"""From a recipe's `algorithm` section to the functions it names, refused before anything is loaded if they cannot work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from rlcore import plugins
from rlcore.batch import Advantages, GradedBatch
from rlcore.errors import UserError, nearest
from rlcore.recipe.schema import RL
from trainers.objective import Objective

Need = Literal["accuracy", "groups", "greedy", "tree", "values"]
Advantage = Callable[[GradedBatch], Advantages]


def needs(*what: Need) -> Callable[[Callable], Callable]:
    """Declare what an advantage or a loss cannot do without:

    accuracy  a verifiable reward component
    groups    at least two completions a problem
    greedy    `GradedBatch.greedy`: the sampler adds a greedy completion of each problem, which is graded and not trained on
    tree      `GradedBatch.path`: completions that were sampled as a tree
    values    `GradedBatch.values`: a critic
    """

    if unknown := set(what) - set(get_args(Need)):
        raise UserError(f"there is no need {min(unknown)!r}{nearest(min(unknown), list(get_args(Need)))}")

    def mark(function: Callable) -> Callable:
        function.needs = what  # type: ignore[attr-defined]
        return function

    return mark


def advantage(recipe: RL) -> Advantage:
    spec, wanted = recipe.algorithm.advantage, needed(recipe)
    name = f"algorithm.advantage {spec.name!r}"
    if "groups" in wanted and recipe.rollout.samples < 2:
        raise UserError(f"{name} compares the completions of a problem: set rollout.samples >= 2")
    if "tree" in wanted and recipe.rollout.tree is None:
        raise UserError(f"{name} compares the branches of a tree: set rollout.tree, with its `segment`")
    if "values" in wanted and recipe.algorithm.critic is None:
        raise UserError(f"{name} needs the values of a critic: add `critic: {{}}` to algorithm")
    if recipe.algorithm.critic is not None and "values" not in wanted:
        raise UserError(f"{name} takes no values: set algorithm.critic=null, or choose gae or length_adaptive_gae")
    return plugins.bind("trainers.advantages", spec.name, spec.options)


def needed(recipe: RL) -> set[Need]:
    """What the recipe's advantage and loss need."""
    algorithm = recipe.algorithm
    found = plugins.find("trainers.advantages", algorithm.advantage.name), plugins.find("trainers.losses", algorithm.loss.name)
    return {need for function in found for need in getattr(function, "needs", ())}


def objective(recipe: RL) -> Objective:
    """Raises UserError where the loss does not go with the recipe's other choices."""
    algorithm = recipe.algorithm
    loss = plugins.bind("trainers.losses", algorithm.loss.name, algorithm.loss.options)
    if not getattr(loss.func, "reads_advantages", True):  # type: ignore[attr-defined]
        paid = algorithm.kl.coefficient and algorithm.kl.place == "reward"
        unread = {"algorithm.critic": algorithm.critic, "algorithm.kl.place reward": paid, "more rewards": recipe.rewards[1:]}
        for name in (name for name, there in unread.items() if there):
            raise UserError(
                f"algorithm.loss {algorithm.loss.name!r} makes its own comparison and would not see {name}: leave it out"
            )
    return Objective(
        policy_loss=loss() if isinstance(loss.func, type) else loss,  # type: ignore[attr-defined]
        kl=algorithm.kl,
        correction=algorithm.correction,
        entropy=algorithm.entropy,
        imitation=algorithm.imitation,
    )
