"""`job: heads`: a model samples completions, and heads of every kind that the recipe names learn to say them ahead, one after
the other (`rollout.decoding.teach`). Heads that are written are not trained again by a run that is resumed.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from rlcore import plugins
from rlcore.data.mixture import load as load_problems
from rlcore.models import ModelSpec
from rlcore.prompts import Prompter, refuse_long, stop_ids
from rlcore.protocols import Engine
from rlcore.recipe.schema import Heads as Recipe
from rlcore.recipe.schema import Source
from rlcore.run.console import watched
from rlcore.run.folder import Run
from rlcore.types import Problem
from rollout.decoding import heads, teach
from rollout.decoding.heads import Heads
from rollout.decoding.teach import Text
from trainers.backends.torch import Torch
from trainers.learner import learning_rate
from trainers.sampler import sample_groups

FOLDER = "heads"  # of the run's; a folder for each label


def steps(recipe: Recipe, problems: int) -> int:
    """Optimiser steps of each kind."""
    return recipe.epochs * -(-problems * recipe.samples // recipe.batch_size)


def describe(recipe: Recipe, config: PretrainedConfig) -> Iterator[str]:
    """Raises UserError for a kind that there is not, or not for a model of this `config`."""
    for label, kind in recipe.heads.items():
        made = heads.make(config, kind.name, kind.options)
        yield f"{label}: {kind.name}, {made.steps} tokens ahead, {sum(p.numel() for p in made.parameters()):,} parameters"


def train(recipe: Recipe, run: Run, spec: ModelSpec, prompter: Prompter, context: int) -> dict[str, Any]:
    """Train, write each to the run's `heads`/LABEL, and say how well they guess completions of `evaluated_on`."""
    said = sampled(recipe, recipe.data, spec, prompter, context)
    held_out = sampled(recipe, recipe.evaluated_on, spec, prompter, context)
    model = spec.load().eval()
    found: dict[str, dict[str, float]] = {}
    done = 0
    for label, kind in recipe.heads.items():
        folder, began = run.folder / FOLDER / label, time.perf_counter()
        if not folder.is_dir():
            made = heads.make(model.config, kind.name, kind.options).to(model.device)
            _train(recipe, run, label, made, model, said, done)
            _write(made, kind.name, kind.options, folder)
        seconds = time.perf_counter() - began
        done += steps(recipe, len(said) // recipe.samples)
        trained = heads.load(str(folder), model.config).to(model.device)
        found[label] = teach.measure(trained, model, held_out, recipe.tokens_at_once).metrics() | {"seconds": seconds}
    return {"heads": found, "tokens": sum(len(text.ids) - text.begin for text in said)}


def sampled(recipe: Recipe, data: Sequence[Source], spec: ModelSpec, prompter: Prompter, context: int) -> list[Text]:
    """What the model says to these problems. Raises UserError for one that leaves no room for a completion."""
    problems: list[Problem] = load_problems(data)
    for problem in problems:
        refuse_long(problem.id, len(prompter.render(problem)), recipe.rollout.max_new_tokens, context, "rollout.max_new_tokens")
    make = plugins.bind("rollout.engines", recipe.rollout.engine.name, recipe.rollout.engine.options)
    engine: Engine = make(spec, prompter.tokenizer, stop_ids(spec, prompter))
    try:
        with watched("sampling", len(problems) * recipe.samples) as progress:
            groups = sample_groups(
                engine, prompter, problems, range(recipe.samples), recipe.rollout.sampling, (recipe.seed,), progress
            )
    finally:
        engine.close()
    return [Text((*c.prompt_ids, *c.token_ids), len(c.prompt_ids)) for group in groups for c in group.completions]


def _train(recipe: Recipe, run: Run, label: str, made: Heads, model: PreTrainedModel, said: Sequence[Text], done: int) -> None:
    """`done`: steps of the kinds before."""
    total = steps(recipe, len(said) // recipe.samples)
    backend, draw = Torch(made, recipe.optimizer), random.Random(recipe.seed)
    order: list[Text] = []
    for step in range(total):
        if len(order) < min(recipe.batch_size, len(said)):
            order += draw.sample(said, len(said))
        batch, order = order[: recipe.batch_size], order[recipe.batch_size :]
        with run.timed("learn"):
            found = teach.learn(made, model, batch, recipe.tokens_at_once, recipe.decay).metrics()
            norm = backend.step(learning_rate(recipe.optimizer, step, total))
        metrics = {f"heads/{name}/{label}": value for name, value in found.items()}
        tokens = sum(len(text.ids) - text.begin for text in batch)
        run.log(done + step + 1, {**metrics, "grad_norm": norm, "tokens": tokens})


def _write(made: Heads, name: str, options: dict[str, Any], folder: Path) -> None:
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    heads.save(made, name, options, aside)
    aside.rename(folder)
