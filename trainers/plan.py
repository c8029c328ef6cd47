"""What an RL recipe asks for, as far as it can be made, and refused, without a model. Shared by launch and dry run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.codec import bound
from rewards.compose import Rewards
from rewards.process.prime import Prime
from rewards.process.process import Process
from rlcore.data.mixture import Mixture
from rlcore.data.mixture import load as load_problems
from rlcore.data.overlap import refuse_overlap
from rlcore.errors import UserError
from rlcore.length_budget import with_largest
from rlcore.prompts import Prompter, refuse_long
from rlcore.protocols import LearnedReward, Reward
from rlcore.recipe.schema import RL
from rlcore.run.console import warn
from rlcore.types import Problem
from trainers import algorithm
from trainers.algorithm import Advantage
from trainers.build import build_drafter
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
    reader = algorithm.needing(recipe, "accuracy")
    reads = {
        "eval": recipe.eval,
        "algorithm.dynamic_sampling": recipe.algorithm.dynamic_sampling,
        "algorithm.curriculum": recipe.algorithm.curriculum,
        "algorithm.replay": recipe.algorithm.replay,
        "algorithm.budget": recipe.algorithm.budget,
        "algorithm.imitation": recipe.algorithm.imitation,
        reader: reader,
        **{f"reward {label!r}": component.reads_accuracy for label, component in rewards.components.items()},
    }
    if rewards.verifiable is None and (reading := [name for name, does in reads.items() if does]):
        raise UserError(f"{reading[0]} reads accuracy, and no reward component is verifiable: add `answer`")
    for label, component in rewards.components.items():
        _refuse_component(recipe, label, component)
    budgeted = any(component.reads_budget for component in rewards.components.values())
    if recipe.length_budget and not (budgeted or recipe.prompt.tells_budget):
        raise UserError(
            "length_budget changes nothing: write {budget} into prompt.template, add a reward that reads it, such as lcpo_max, "
            "or leave it out"
        )
    for component in rewards.components.values():
        if isinstance(component, Process):
            component.judge_with(component.make_judge())  # without its weights, which `trainers.parts` loads
    if recipe.rollout.compression is not None:
        bound([(m.name, m.options) for m in recipe.rollout.compression.methods], recipe.rollout.compression.reassign)
    build_drafter(recipe)
    problems = Mixture(recipe.data, recipe.seed)
    held_out = load_problems(recipe.eval.data)[: recipe.eval.limit] if recipe.eval else []
    refuse_overlap(problems.problems, held_out)
    if recipe.mode.staleness and recipe.algorithm.correction is None:
        warn(f"{recipe.mode.name} trains on older policies' tokens, uncorrected: set algorithm.correction (token_tis is usual)")
    if (name := algorithm.needing(recipe, "on_policy")) and (recipe.update.steps > 1 or recipe.mode.staleness):
        warn(
            f"{name} has no ratio to the policy that sampled: it is exact with one update a step (update.epochs=1, "
            "update.minibatches=1) in mode sync"
        )
    return Plan(advantage, objective, rewards, problems, held_out)


def _refuse_component(recipe: RL, label: str, component: Reward) -> None:
    """Raises UserError for a reward component that does not go with what the recipe says elsewhere."""
    longest = recipe.rollout.max_new_tokens
    if isinstance(component, LearnedReward) and not isinstance(component, Prime):
        raise UserError(f"reward {label!r} learns in the run, and only `prime` is given a model to learn with")
    if component.reads_budget and recipe.length_budget is None:
        raise UserError(f"reward {label!r} reads length budgets, and the recipe gives none: add `length_budget`")
    if component.max_tokens is not None and component.max_tokens > longest:
        raise UserError(
            f"reward {label!r} has max_tokens {component.max_tokens}, and completions are cut before that, at "
            f"rollout.max_new_tokens {longest}: lower the one or raise the other"
        )
    if component.reads_length and recipe.rollout.anytime is not None:
        raise UserError(
            f"reward {label!r} goes by length, and the completions of rollout.anytime have tokens that were forced, at budgets "
            "of their own: leave out one of them"
        )
    if component.compares_group and (name := algorithm.needing(recipe, "greedy")):
        raise UserError(
            f"reward {label!r} compares the completions of a problem, and {name} wants to know what a greedy one is worth by "
            "itself: choose another advantage, or leave the reward out"
        )


def longest_prompt(recipe: RL, asked: Plan, prompter: Prompter, context: int) -> int:
    """Tokens of the longest prompt, held-out ones included. Warns of prompts that the tokenizer cannot write. Raises UserError
    where one does not fit with its completion."""
    training = evaluation = ("rollout.max_new_tokens", recipe.rollout.max_new_tokens)
    if recipe.eval is not None and recipe.eval.max_new_tokens is not None:
        evaluation = ("eval.max_new_tokens", recipe.eval.max_new_tokens)
    longest = 0
    for (key, limit), problems in ((training, asked.problems.problems), (evaluation, asked.held_out)):
        for problem in problems:
            tokens = len(prompter.render(with_largest(problem, recipe.length_budget)))
            refuse_long(problem.id, tokens, limit, context, key)
            longest = max(longest, tokens)
    _warn_unwritable(prompter.render(with_largest(asked.problems.problems[0], recipe.length_budget)), prompter)
    return longest


def _warn_unwritable(prompt: Sequence[int], prompter: Prompter) -> None:
    """Where the tokenizer has no token for what a prompt says: the policy reads the same unknown token for all of it."""
    unknown = prompter.tokenizer.unk_token_id
    if unknown is not None and (lost := prompt.count(unknown)):
        warn(
            f"{lost} tokens of the first prompt are unknown to the model's tokenizer, which cannot write them either: see what "
            "--dry-run shows, and change `prompt` or the model"
        )
