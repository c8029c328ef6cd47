"""Trains a reward model, a classifier of texts: `job: reward_model`. Its steps are those of `trainers.supervised`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewards import trained_on
from rewards.calibration import measures, reliability, temperature
from rewards.calibration_plot import draw
from rlcore.batch import TrainingBatch
from rlcore.models import ModelSpec
from rlcore.recipe.schema import FirstStage, RewardModel
from rlcore.run.checkpoint import latest
from rlcore.run.console import warn
from rlcore.run.folder import Run
from trainers.classifier import CrossEntropy, LogOdds, batch_of
from trainers.judged import Labelled, Material, judged_text
from trainers.learner import ADAPTERS, Learner
from trainers.scorer import Scorer
from trainers.supervised import best, learn, orders, say_written, written_step

NAME = "reward_model"  # of its folder in a checkpoint


def train(
    recipe: RewardModel, run: Run, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, material: Material
) -> Scorer:
    """Train, stage by stage, until the recipe says stop; the model of the best validation, as it was written. A resumed run
    takes up where its last checkpoint stands."""
    first, second = stage_steps(recipe, len(material.train))
    step, resumed_at = 0, latest(run.folder / "checkpoints") or 0
    stages = [*([(recipe.first_stage, first)] if recipe.first_stage else []), (None, first + second)]
    # at the end of the first stage it is the head alone that a checkpoint holds: that stage's learner takes it up
    for number, (stage, until) in enumerate([each for each in stages if each[1] >= resumed_at] or stages[-1:]):
        learner = _learner(recipe, model, tokenizer, material.train, stage)
        run.learners = {NAME: learner}
        if not number:
            step = run.restore()
            if not step:
                run.log(0, validated(learner, material))
        step = _train(recipe, run, learner, material, step, until)
    run.learners = {}
    del learner  # with the moments, before another model is loaded
    return _written(recipe, best(run, NAME) / "model")


def _train(recipe: RewardModel, run: Run, learner: Learner, material: Material, step: int, until: int) -> int:
    return learn(
        run,
        learner,
        batches(recipe, material.train, step),
        lambda: validated(learner, material),
        step=step,
        until=until,
        validate_every=recipe.validate_every,
    )


def finish(recipe: RewardModel, run: Run, model: Scorer, material: Material) -> dict[str, float | str]:
    """Write the plain checkpoint to the folder's `model`, with how its texts are written and the temperature that calibrates
    it, and `calibration.svg`. What the validation set says of the model."""
    found, labels = log_odds(model, material.validation), labels_of(material.validation)
    divisor = temperature(found, labels)
    calibrated = [z / divisor for z in found]
    say_written(run)
    shutil.copytree(best(run, NAME) / "model", run.folder / "model", dirs_exist_ok=True)
    replace(judged_text(recipe), temperature=divisor).save(run.folder / "model")
    trained_on.keep(run.folder / "model", material.problems)
    curves = {"as trained": reliability(found, labels), "calibrated": reliability(calibrated, labels)}
    draw(run.folder / "calibration.svg", curves)
    if (gain := measures(found, labels)["gain"]) <= 0:
        warn(f"this model knows nothing of the problems held out: {-gain:.3f} nats worse than the share of right ones alone")
    return {
        **{f"validation_{name}": value for name, value in measures(found, labels).items()},
        "validation_error_calibrated": measures(calibrated, labels)["error"],
        "temperature": divisor,
        "train_examples": len(labels_of(material.train)),
        "validation_examples": len(labels),
        "written_step": written_step(run),
        "reward_model": str(run.folder / "model"),
    }


def stage_steps(recipe: RewardModel, texts: int) -> tuple[int, int]:
    """Steps of the first stage, in which the head learns alone, and of the second."""
    epoch = -(-texts // recipe.batch_size)
    return (recipe.first_stage.epochs if recipe.first_stage else 0) * epoch, recipe.epochs * epoch


def batches(recipe: RewardModel, texts: Sequence[Labelled], after: int) -> Iterator[TrainingBatch]:
    """The batches that follow step `after`, without end."""
    for order in orders(recipe.seed, len(texts), recipe.batch_size, after):
        yield batch_of([texts[i] for i in order])


def validated(learner: Learner, material: Material) -> dict[str, float]:
    found = measures(log_odds(learner, material.validation), labels_of(material.validation))
    return {f"validation/{name}": value for name, value in found.items()}


def log_odds(model: Scorer, texts: Sequence[Labelled]) -> list[float]:
    """Of every end, in the order of texts and ends."""
    batch = batch_of(texts).graded
    found: list[float] = model.outputs(batch, range(len(texts)))[0][batch.loss_mask.bool()].tolist()
    return found


def labels_of(texts: Sequence[Labelled]) -> list[float]:
    return [label for text in texts for label in text.labels]


def objective(recipe: RewardModel, texts: Sequence[Labelled]) -> CrossEntropy:
    if not recipe.balance:
        return CrossEntropy()
    labels = labels_of(texts)
    right = sum(labels) / len(labels)
    return CrossEntropy((0.5 / (1 - right), 0.5 / right))


def _written(recipe: RewardModel, folder: Path) -> Scorer:
    model = ModelSpec(str(folder), "float32", recipe.device, recipe.trust_remote_code).load_with_head(2, recipe.head)
    return Scorer(model, recipe.update, recipe.dtype, LogOdds(model))


def _learner(
    recipe: RewardModel,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Labelled],
    first: FirstStage | None,
) -> Learner:
    """Of the head alone in the first stage, in the second of all of the model, or of head and adapters."""
    for name, parameter in model.named_parameters():
        is_head = "score" in name.split(".")
        beside = not isinstance(model, PeftModel) or any(part in name for part in ADAPTERS)
        parameter.requires_grad_(is_head or (first is None and beside))
    rate = recipe.optimizer.learning_rate if first is None else first.learning_rate
    return Learner(
        model,
        tokenizer,
        objective(recipe, texts),
        optimizer=recipe.optimizer.model_copy(update={"learning_rate": rate}),
        update=recipe.update,
        aggregate="token_mean",
        constant_length=1,
        dtype=recipe.dtype,
        total_steps=stage_steps(recipe, len(texts))[first is None],
        head=LogOdds,
    )
