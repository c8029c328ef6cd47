"""A job from its recipe to its run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from compress import job as compress
from compress import sensitivity
from compress.compressed import CompressedModel
from compress.texts import texts_of
from rlcore import __version__, models
from rlcore.cluster.connect import connected
from rlcore.conversation import ConversationPrompter
from rlcore.data.mixture import load as load_problems
from rlcore.errors import UserError
from rlcore.evaluation import held_out
from rlcore.evaluation.compressed import solved_compressed
from rlcore.evaluation.diversity import diversity
from rlcore.evaluation.during import PeriodicEvaluation, compare
from rlcore.evaluation.solved import solved
from rlcore.grading.pool import Grader
from rlcore.latent import refuse_latent
from rlcore.models import ModelSpec
from rlcore.prompts import Prompter, stop_ids
from rlcore.protocols import LearnerLost
from rlcore.recipe.load import Loaded
from rlcore.recipe.schema import (
    RL,
    Altered,
    Annotate,
    Checkpoint,
    Compress,
    DecodeBench,
    Evaluate,
    Heads,
    Job,
    Preference,
    RewardModel,
    Sensitivity,
    Sft,
    Stop,
)
from rlcore.report import bench as bench_report
from rlcore.report.page import write_report
from rlcore.report.sensitivity import FILE, PICTURE, curve, picture
from rlcore.run.checkpoint import latest
from rlcore.run.console import say, warn
from rlcore.run.folder import Interrupted, Run, claim, write_aside
from rlcore.toy import warmstart
from rollout import annotate
from rollout.decoding import bench
from rollout.growing import Grower
from trainers import heads, judged, reward_model, sft
from trainers.build import build_classifier, build_policy
from trainers.compression import CompressedRollouts
from trainers.loop import train
from trainers.parts import build_parts
from trainers.plan import plan
from trainers.preference import pairs
from trainers.preference import trainer as preference
from trainers.quantised_base import quantiser, start_of


def run(loaded: Loaded, resume: bool) -> dict[str, Any]:
    """Do the recipe's job in its run folder and return its summary."""
    recipe = loaded.recipe
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    with claim(loaded, resume):
        if not isinstance(recipe, Annotate | Evaluate):
            refuse_latent(recipe.model)
        done = Path(recipe.folder, "summary.json")
        if isinstance(recipe, Altered | DecodeBench | Evaluate | Heads) and done.is_file():  # and it is resumed
            summary: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
            return summary
        if recipe.quantised_base is not None:
            quantiser(recipe.quantised_base)  # refused before anything is loaded
        return WORK[type(recipe)](loaded, recipe)


def _rl(loaded: Loaded, recipe: RL) -> dict[str, Any]:
    if recipe.cluster is None:
        return _train(loaded, recipe)
    with connected(recipe.cluster.address) as description:
        say(description)
        restarts, checkpoints = 0, Path(recipe.folder) / "checkpoints"
        while True:
            try:
                return _train(loaded, recipe)
            except LearnerLost as lost:
                if restarts == recipe.cluster.max_restarts:
                    raise UserError(f"{lost}; {restarts} restarts are spent: look for the cause, then add --resume") from lost
                restarts += 1
                step = latest(checkpoints) or 0
                warn(f"{lost}; starting again from step {step} (restart {restarts} of {recipe.cluster.max_restarts})")


def _train(loaded: Loaded, recipe: RL) -> dict[str, Any]:
    # everything that can be refused without a model
    run = Run(loaded, steps=recipe.steps, keep=recipe.checkpoint, stop=recipe.stop)
    asked = plan(recipe)
    for line in asked.problems.describe():
        say(line)
    say(f"{recipe.model} in {recipe.dtype} on {_place(recipe)}")
    with ExitStack() as ending:
        ending.callback(run.console.stop)
        ending.callback(asked.rewards.close)
        parts = build_parts(recipe, asked, start_of(recipe, warmstart.resolve(recipe.model, recipe.seed)), ending)
        run.learners = {"policy": parts.learner, **parts.rewards.learners}
        run.cursors = {"data": parts.sampler, "rewards": parts.rewards, "monitor": parts.monitor}
        if isinstance(parts.compression, CompressedRollouts):
            run.cursors["compression"] = parts.compression
        if recipe.eval is None:
            step, summary = train(parts, run), {}
        else:
            verify = parts.rewards.verify
            exactly = parts.compression.exactly
            evaluation = PeriodicEvaluation(recipe, asked.held_out, parts.engine, parts.sampler.prompter, verify, exactly)
            before = run.once("evaluation_before.json", partial(evaluation.thorough, step=0))
            step = train(replace(parts, evaluate=parts.monitor.hearing(evaluation)), run)
            summary = compare(before, evaluation.thorough(step), recipe.rollout.temperature)
        told = parts.compression.summary()
    stopped = {"stopped": run.alarmed} if run.alarmed else {}
    summary = _finish(run, {"engine": recipe.rollout.engine.model_dump(), **summary, "steps": step, **told, **stopped})
    if run.alarmed:
        raise Interrupted(f"{run.alarmed}; look at {run.folder}/report.html, or go on: rlcore train {run.folder} --resume")
    return summary


def _place(recipe: RL) -> str:
    """Where the models work. On a cluster every process picks its own device."""
    if recipe.cluster is None:
        return models.pick_device(recipe.device)
    asked = recipe.cluster
    return (
        f"{asked.workers} workers ({asked.gpus_per_worker:g} GPUs each) and {asked.ranks} ranks ({asked.gpus_per_rank:g}), "
        "which take a minute or more to start"
    )


def _sft(loaded: Loaded, recipe: Sft) -> dict[str, Any]:
    problems = load_problems(recipe.data)
    run = Run(loaded, steps=recipe.epochs * -(-len(problems) // recipe.batch_size), keep=Checkpoint(), stop=Stop())
    location = start_of(recipe, warmstart.resolve(recipe.model, recipe.seed))
    tokenizer = models.load_tokenizer(location, recipe.trust_remote_code)
    prompter = Prompter(recipe.prompt, tokenizer)
    texts = texts_of(recipe.evaluated_on or [], prompter, models.context(location, recipe.trust_remote_code))
    policy = build_policy(recipe, location)
    run.begin()
    try:
        result = sft.train(recipe, policy, tokenizer, prompter, problems, run.folder, run.log)
        result |= held_out.measured(recipe, texts, run.folder)
    finally:
        run.console.stop()
    return _finish(run, result)


def _heads(loaded: Loaded, recipe: Heads) -> dict[str, Any]:
    location = warmstart.resolve(recipe.model, recipe.seed)
    prompter = Prompter(recipe.prompt, models.load_tokenizer(location, recipe.trust_remote_code))
    for line in heads.describe(recipe, models.without_weights(location, recipe.trust_remote_code).config):
        say(line)
    spec = ModelSpec(location, recipe.dtype, recipe.device, recipe.trust_remote_code)
    steps = len(recipe.heads) * heads.steps(recipe, len(load_problems(recipe.data)))
    run = Run(loaded, steps=steps, keep=Checkpoint(), stop=Stop())
    run.begin()
    try:
        found = heads.train(recipe, run, spec, prompter, models.context(location, recipe.trust_remote_code))
    finally:
        run.console.stop()
    return _finish(run, found)


def _reward_model(loaded: Loaded, recipe: RewardModel) -> dict[str, Any]:
    location = start_of(recipe, warmstart.resolve(recipe.model, recipe.seed))
    tokenizer = models.load_tokenizer(location, recipe.trust_remote_code)
    material = judged.material(recipe, tokenizer, models.context(location, recipe.trust_remote_code))
    steps = sum(reward_model.stage_steps(recipe, len(material.train)))
    run = Run(loaded, steps=steps, keep=recipe.checkpoint, stop=Stop())
    model = build_classifier(recipe, location)
    model.config.pad_token_id = tokenizer.pad_token_id
    with ExitStack() as ending:
        ending.callback(run.console.stop)
        with run.interruptible():
            best = reward_model.train(recipe, run, model, tokenizer, material)
        return _finish(run, reward_model.finish(recipe, run, best, material))


def _preference(loaded: Loaded, recipe: Preference) -> dict[str, Any]:
    preference.preference_loss(recipe)  # refused before anything is loaded
    location = start_of(recipe, warmstart.resolve(recipe.model, recipe.seed))
    tokenizer = models.load_tokenizer(location, recipe.trust_remote_code)
    material = pairs.material(
        recipe, ConversationPrompter(recipe.prompt, tokenizer), models.context(location, recipe.trust_remote_code)
    )
    run = Run(loaded, steps=preference.steps(recipe, len(material.train)), keep=recipe.checkpoint, stop=Stop())
    model = build_policy(recipe, location)
    with ExitStack() as ending:
        ending.callback(run.console.stop)
        with run.interruptible():
            trained = preference.train(recipe, run, location, model, tokenizer, material)
        return _finish(run, preference.finish(recipe, run, trained))


def _annotate(loaded: Loaded, recipe: Annotate) -> dict[str, Any]:
    asked = annotate.plan(recipe)
    for line in asked.describe():
        say(line)
    run = Run(loaded, steps=len(asked.problems), keep=Checkpoint(every=1, keep_last=1), stop=Stop())
    location = warmstart.resolve(recipe.model, recipe.seed)
    prompter = Prompter(recipe.prompt, models.load_tokenizer(location, recipe.trust_remote_code))
    annotate.longest_prompt(asked, prompter, models.context(location, recipe.trust_remote_code))
    spec = ModelSpec(location, recipe.dtype, recipe.device, recipe.trust_remote_code)
    with ExitStack() as ending:
        ending.callback(run.console.stop)
        engine = asked.engine(spec, prompter.tokenizer, stop_ids(spec, prompter))
        ending.callback(engine.close)
        grader = ending.enter_context(Grader())
        grower = Grower(engine, prompter, grader.grade, recipe.rollout.sampling, recipe.separator, recipe.seed)
        with run.interruptible():
            return _finish(run, annotate.annotate(recipe, run, asked, grower))


def _compress(loaded: Loaded, recipe: Compress) -> dict[str, Any]:
    location = warmstart.resolve(recipe.model, recipe.seed)
    tokenizer = models.load_tokenizer(location, recipe.trust_remote_code)
    prompter = Prompter(recipe.prompt, tokenizer)
    asked = compress.plan(recipe, prompter, models.context(location, recipe.trust_remote_code))
    for line in compress.describe(asked):
        say(line)
    spec = ModelSpec(location, "float32", recipe.device, recipe.trust_remote_code)
    layers = models.without_weights(location, recipe.trust_remote_code).config.num_hidden_layers
    run = Run(loaded, steps=layers, keep=Checkpoint(), stop=Stop(), unit="layer")
    run.begin()
    try:
        compressed, found = compress.compress(recipe, asked, run, spec, tokenizer)
        if recipe.eval is not None:
            found |= solved_compressed(recipe, recipe.eval, compressed, prompter)
    finally:
        run.console.stop()
    return _finish(run, found)


def _sensitivity(loaded: Loaded, recipe: Sensitivity) -> dict[str, Any]:
    location = warmstart.resolve(recipe.model, recipe.seed)
    prompter = Prompter(recipe.prompt, models.load_tokenizer(location, recipe.trust_remote_code))
    asked = sensitivity.plan(recipe, prompter, models.context(location, recipe.trust_remote_code))
    layers = models.without_weights(location, recipe.trust_remote_code).config.num_hidden_layers
    for line in sensitivity.describe(recipe, asked, layers):
        say(line)
    spec = ModelSpec(location, "float32", recipe.device, recipe.trust_remote_code)
    run = Run(loaded, steps=max(len(recipe.strengths), layers if recipe.layers else 0), keep=Checkpoint(), stop=Stop())
    run.begin()

    def solve(model: PreTrainedModel) -> float:
        assert recipe.eval is not None
        return solved_compressed(recipe, recipe.eval, CompressedModel(model, torch.float32), prompter)["accuracy"]

    try:
        found, summary = sensitivity.sensitivity(recipe, asked, run, spec, solve if recipe.eval else None)
    finally:
        run.console.stop()
    measurements = [asdict(each) for each in found]
    write_aside(run.folder / FILE, "".join(f"{json.dumps(each)}\n" for each in measurements))
    picture({recipe.name: [curve(measurements)]}, run.folder / PICTURE, salt=recipe.name)
    return _finish(run, summary)


def _decode_bench(loaded: Loaded, recipe: DecodeBench) -> dict[str, Any]:
    location = warmstart.resolve(recipe.model, recipe.seed)
    prompter = Prompter(recipe.prompt, models.load_tokenizer(location, recipe.trust_remote_code))
    resolve = partial(warmstart.resolve, seed=recipe.seed)
    asked = bench.plan(recipe, prompter, models.context(location, recipe.trust_remote_code), resolve)
    for line in bench.describe(recipe, asked):
        say(line)
    spec = ModelSpec(location, recipe.dtype, recipe.device, recipe.trust_remote_code)
    run = Run(loaded, steps=len(recipe.batch_sizes), keep=Checkpoint(), stop=Stop(), unit="batch size")
    run.begin()
    try:
        measurements = [asdict(each) for each in bench.bench(recipe, asked, run, spec, prompter)]
    finally:
        run.console.stop()
    write_aside(run.folder / bench_report.FILE, "".join(f"{json.dumps(each)}\n" for each in measurements))
    bench_report.picture({recipe.name: [bench_report.curve(measurements)]}, run.folder / bench_report.PICTURE, recipe.name)
    return _finish(run, bench.summary(recipe, measurements))


def _evaluate(loaded: Loaded, recipe: Evaluate) -> dict[str, Any]:
    location = warmstart.resolve(recipe.model, recipe.seed)
    prompter = Prompter(recipe.prompt, models.load_tokenizer(location, recipe.trust_remote_code))
    spec = ModelSpec(location, recipe.dtype, recipe.device, recipe.trust_remote_code)
    run = Run(loaded, steps=1, keep=Checkpoint(), stop=Stop())
    run.begin()
    try:
        done = solved(recipe, recipe.eval, spec, prompter)
        found = {**done.summary(), **diversity(done)}
        run.log(1, {f"eval/{name}": value for name, value in found.items()})
    finally:
        run.console.stop()
    return _finish(run, found)


WORK: Mapping[type[Job], Callable[[Loaded, Any], dict[str, Any]]] = {
    RL: _rl,
    Sft: _sft,
    Heads: _heads,
    RewardModel: _reward_model,
    Preference: _preference,
    Annotate: _annotate,
    Compress: _compress,
    Sensitivity: _sensitivity,
    DecodeBench: _decode_bench,
    Evaluate: _evaluate,
}


def _finish(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    about = {"recipe": run.recipe.name, "model": run.recipe.model, "rlcore": __version__}
    summary = {**about, **results, "wall_s": round(run.elapsed, 1)}
    run.finish(summary)
    write_report(run.folder)
    return summary
