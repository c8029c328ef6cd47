"""The problems that a recipe asks a model, through the engine that it names."""

from __future__ import annotations

from rewards.verifiable.answer import Answer
from rlcore import plugins
from rlcore.data.mixture import load as load_problems
from rlcore.evaluation.evaluate import Evaluation, evaluate
from rlcore.models import ModelSpec
from rlcore.prompts import Prompter, stop_ids
from rlcore.protocols import Engine
from rlcore.recipe.schema import Altered, Asked, Evaluate


def solved(recipe: Altered | Evaluate, asked: Asked, spec: ModelSpec, prompter: Prompter) -> Evaluation:
    problems = load_problems(asked.data)[: asked.limit]
    make = plugins.bind("rollout.engines", asked.engine.name, asked.engine.options)
    grader = Answer()
    engine: Engine = make(spec, prompter.tokenizer, stop_ids(spec, prompter))
    try:
        return evaluate(
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
