"""From a recipe's `algorithm` section to the functions it names, refused before anything is loaded if they cannot work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from rlcore import plugins
from rlcore.batch import Advantages, GradedBatch
from rlcore.errors import UserError, nearest
from rlcore.recipe.schema import RL
from trainers.objective import Objective

Need = Literal["accuracy", "groups", "greedy", "tree", "budgets", "values", "kl_in_loss", "on_policy"]
Advantage = Callable[[GradedBatch], Advantages]


def needs(*what: Need) -> Callable[[Callable], Callable]:
    """Declare what an advantage or a loss cannot do without:

    accuracy    a verifiable reward component
    groups      at least two completions a problem
    greedy      `GradedBatch.greedy`: the sampler adds a greedy completion of each problem, which is graded and not trained on
    tree        `GradedBatch.path`: completions that were sampled as a tree
    budgets     `GradedBatch.cut`: thoughts that were cut at budgets
    values      `GradedBatch.values`: a critic
    kl_in_loss  rewards without a KL term, as it divides them by their spread in the group: where all answers are alike, what is
                left to divide by is the noise of the KL estimates
    on_policy   that the weights which learn from a completion are those that sampled it (where they are not, users are warned)
    """

    if unknown := set(what) - set(get_args(Need)):
        raise UserError(f"there is no need {min(unknown)!r}{nearest(min(unknown), list(get_args(Need)))}")

    def mark(function: Callable) -> Callable:
        function.needs = what  # type: ignore[attr-defined]
        return function

    return mark


def needing(recipe: RL, need: Need) -> str:
    """Which of the recipe's advantage and loss needs it, by its key and name; empty for neither."""
    algorithm = recipe.algorithm
    if need in _needs("trainers.advantages", algorithm.advantage.name):
        return f"algorithm.advantage {algorithm.advantage.name!r}"
    if need in _needs("trainers.losses", algorithm.loss.name):
        return f"algorithm.loss {algorithm.loss.name!r}"
    return ""


def _those_that_need(need: Need) -> str:
    """The advantages that do, by name."""
    return " or ".join(name for name in plugins.names("trainers.advantages") if need in _needs("trainers.advantages", name))


def _needs(package: str, name: str) -> tuple[Need, ...]:
    found: tuple[Need, ...] = getattr(plugins.find(package, name), "needs", ())
    return found


def advantage(recipe: RL) -> Advantage:
    """Raises UserError where the recipe lacks what its advantage or its loss needs."""
    algorithm, rollout = recipe.algorithm, recipe.rollout
    if rollout.samples < 2 and (name := needing(recipe, "groups")):
        raise UserError(f"{name} compares the completions of a problem: set rollout.samples >= 2")
    if rollout.tree is None and (name := needing(recipe, "tree")):
        raise UserError(f"{name} compares the branches of a tree: set rollout.tree, with its `segment`")
    if rollout.anytime is None and (name := needing(recipe, "budgets")):
        raise UserError(f"{name} compares what thoughts are worth at budgets: set rollout.anytime, with its `budgets`")
    if rollout.anytime is not None and not needing(recipe, "budgets"):
        raise UserError(
            f"algorithm.advantage {algorithm.advantage.name!r} compares whole completions, and those of rollout.anytime are "
            f"thoughts cut at budgets: set rollout.anytime=null, or choose {_those_that_need('budgets')}"
        )
    if algorithm.critic is None and (name := needing(recipe, "values")):
        raise UserError(f"{name} needs the values of a critic: add `critic: {{}}` to algorithm")
    if algorithm.kl.is_paid and (name := needing(recipe, "kl_in_loss")):
        raise UserError(
            f"{name} divides rewards by their spread, and so would blow up the noise of a KL term that is paid: set "
            "algorithm.kl.place=loss (with estimator k2, k3 or k3_plus)"
        )
    if algorithm.critic is not None and not needing(recipe, "values"):
        raise UserError(
            f"algorithm.advantage {algorithm.advantage.name!r} takes no values: set algorithm.critic=null, or choose "
            f"{_those_that_need('values')}"
        )
    return plugins.bind("trainers.advantages", algorithm.advantage.name, algorithm.advantage.options)


def objective(recipe: RL) -> Objective:
    """Raises UserError where the loss does not go with the recipe's other choices."""
    algorithm = recipe.algorithm
    loss = plugins.bind("trainers.losses", algorithm.loss.name, algorithm.loss.options)
    if not getattr(loss.func, "reads_advantages", True):  # type: ignore[attr-defined]
        unread = {
            "algorithm.critic": algorithm.critic,
            "algorithm.kl.place reward": algorithm.kl.is_paid,
            "rollout.anytime": recipe.rollout.anytime,
            "more rewards": recipe.rewards[1:],
        }
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
