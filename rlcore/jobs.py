"""A job from its recipe to its run folder: the one place where all parts are put together."""

from __future__ import annotations

from typing import Any

import torch

from rlcore import models
from rlcore.data.mixture import load as load_problems
from rlcore.evaluation.during import PeriodicEvaluation, compare
from rlcore.plan import plan
from rlcore.prompts import Prompter, refuse_long
from rlcore.recipe.load import Loaded
from rlcore.recipe.schema import RL, Checkpoint, Sft, Stop
from rlcore.report.page import write_report
from rlcore.run.folder import Run, claim
from rlcore.toy import warmstart
from trainers import rl, sft
from trainers.loop import Parts, train
from trainers.prepare import Prepare
from trainers.sampler import Sampler


def run(loaded: Loaded, resume: bool) -> dict[str, Any]:
    """Do the recipe's job in its run folder and return its summary."""
    recipe = loaded.recipe
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    with claim(loaded, resume):
        return _rl(loaded, recipe) if isinstance(recipe, RL) else _sft(loaded, recipe)


def _rl(loaded: Loaded, recipe: RL) -> dict[str, Any]:
    # everything that can be refused without a model
    run = Run(loaded, steps=recipe.steps, keep=recipe.checkpoint, stop=recipe.stop)
    asked = plan(recipe)
    problems, rewards = asked.problems, asked.rewards
    for line in problems.describe():
        run.console.say(line)
    # the models
    location = warmstart.resolve(recipe.model, recipe.seed)
    tokenizer = models.load_tokenizer(location, recipe.trust_remote_code)
    prompter = Prompter(recipe.prompt, tokenizer)
    run.console.say(f"{recipe.model} on {models.pick_device(recipe.device)} in {recipe.dtype}")
    context = models.context(location, recipe.trust_remote_code)
    refuse_long(prompter, [*problems.problems, *asked.held_out], context, recipe.rollout.max_new_tokens)
    engine = rl.build_engine(recipe, location, tokenizer, prompter)
    learner = rl.build_learner(recipe, rl.build_policy(recipe, location), tokenizer, asked.objective)
    reference = rl.build_reference(recipe, location, tokenizer, asked.objective)
    # the loop
    sampler = Sampler(recipe, problems, prompter, engine, rewards)
    prepare = Prepare(sampler.select, asked.advantage, reference, recipe.algorithm.mask_truncated)
    run.learners = {"policy": learner}
    run.cursors = {"data": sampler, "rewards": rewards}
    try:
        if recipe.eval is None:
            step = train(Parts(sampler, engine, rewards, prepare, learner, lambda _: {}, recipe.dtype), run)
            summary: dict[str, Any] = {}
        else:
            evaluation = PeriodicEvaluation(recipe, asked.held_out, engine, prompter, rewards.verify)
            before = run.once("evaluation_before.json", evaluation.thorough)
            step = train(Parts(sampler, engine, rewards, prepare, learner, evaluation, recipe.dtype), run)
            summary = compare(before, evaluation.thorough(), recipe.rollout.temperature)
    finally:
        engine.close()
        rewards.close()
        run.console.stop()
    return _finish(run, {**summary, "steps": step})


def _sft(loaded: Loaded, recipe: Sft) -> dict[str, Any]:
    problems = load_problems(recipe.data)
    run = Run(loaded, steps=recipe.epochs * -(-len(problems) // recipe.batch_size), keep=Checkpoint(), stop=Stop())
    location = warmstart.resolve(recipe.model, recipe.seed)
    tokenizer = models.load_tokenizer(location, recipe.trust_remote_code)
    policy = rl.build_policy(recipe, location)
    run.begin()
    try:
        result = sft.train(recipe, policy, tokenizer, Prompter(recipe.prompt, tokenizer), problems, run.folder, run.log)
    finally:
        run.console.stop()
    return _finish(run, result)


def _finish(run: Run, summary: dict[str, Any]) -> dict[str, Any]:
    summary = {**summary, "wall_s": round(run.elapsed, 1)}
    run.finish(summary)
    write_report(run.folder)
    return summary
