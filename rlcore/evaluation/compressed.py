"""How many held-out problems a compressed model solves, through the engine that a recipe names."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from compress.compressed import CompressedModel
from rewards.verifiable.answer import Answer
from rlcore import plugins
from rlcore.data.mixture import load as load_problems
from rlcore.evaluation.evaluate import evaluate
from rlcore.models import ModelSpec
from rlcore.prompts import Prompter, stop_ids
from rlcore.protocols import Engine
from rlcore.recipe.schema import Altered, Asked


def solved(recipe: Altered, asked: Asked, compressed: CompressedModel, prompter: Prompter) -> dict[str, float]:
    """`rlcore.evaluation.evaluate.Evaluation.summary` of the reconstructions."""
    problems = load_problems(asked.data)[: asked.limit]
    make = plugins.bind("rollout.engines", asked.engine.name, asked.engine.options)
    grader = Answer()
    with tempfile.TemporaryDirectory() as folder:
        compressed.export(Path(folder), prompter.tokenizer, torch.float32)
        spec = ModelSpec(folder, recipe.dtype, recipe.device, recipe.trust_remote_code)
        engine: Engine = make(spec, prompter.tokenizer, stop_ids(spec, prompter))
        try:
            done = evaluate(
                engine,
                prompter,
                problems,
                lambda groups: grader.score(groups, None),
                asked.samples,
                asked.sampling,
                recipe.seed,
                recipe.max_invalid_fraction,
            )
        finally:
            engine.close()
            grader.close()
    return done.summary()
