"""Trains a policy from pairs of answers: `job: preference`. Its steps are those of `trainers.supervised`.

The reference is the model that training starts from. Its log-probs are computed once, before the first step: no second model is
held.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlcore import plugins
from rlcore.batch import TrainingBatch
from rlcore.recipe.schema import Preference
from rlcore.run.console import say
from rlcore.run.folder import Run
from rlcore.run.metrics import values
from trainers.preference.objective import PairLearner, PairObjective, PreferenceLoss, told
from trainers.preference.pairs import Material, Pair, batch_of
from trainers.scorer import Scorer
from trainers.supervised import best, learn, orders

NAME = "policy"  # of its folder in a checkpoint
AT_ONCE = 512  # pairs that are padded to one length when nothing is learned


@dataclass(frozen=True)
class Side:
    """Pairs, and the reference's log-probs of their answers, two a pair, where the loss asks for them."""

    pairs: Sequence[Pair]
    reference: Sequence[Tensor] | None

    def batch(self, numbers: Sequence[int]) -> TrainingBatch:
        reference = None if self.reference is None else [self.reference[2 * i + k] for i in numbers for k in range(2)]
        return batch_of([self.pairs[i] for i in numbers], numbers, reference)


@dataclass(frozen=True)
class Trained:
    learner: PairLearner
    training: Side
    validation: Side


def train(
    recipe: Preference, run: Run, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, material: Material
) -> Trained:
    """Train until the recipe says stop, and take up the weights of the best validation. A resumed run goes on from its last
    checkpoint."""
    loss = preference_loss(recipe)
    asks = loss.reward.relative
    training, validation = (
        Side(pairs, _reference(recipe, model, pairs) if asks else None) for pairs in (material.train, material.validation)
    )
    learner = build_learner(recipe, model, tokenizer, loss, len(training.pairs))
    run.learners = {NAME: learner}
    step = run.restore()
    if not step:
        run.log(0, validated(learner, validation))
    learn(
        run,
        learner,
        batches(recipe, training, step),
        lambda: validated(learner, validation),
        step=step,
        until=steps(recipe, len(training.pairs)),
        validate_every=recipe.validate_every,
    )
    learner.load(best(run, NAME))
    return Trained(learner, training, validation)


def finish(recipe: Preference, run: Run, trained: Trained) -> dict[str, float]:
    """Write the plain checkpoint to the folder's `model`, with what its log-probs are worth as rewards; what the pairs held out
    say of it."""
    shutil.copytree(best(run, NAME) / "model", run.folder / "model", dirs_exist_ok=True)
    trained.learner.objective.loss.reward.save(run.folder / "model")
    found = validated(trained.learner, trained.validation)
    return {
        **{name.replace("/", "_"): value for name, value in found.items()},
        "train_pairs": len(trained.training.pairs),
        "validation_pairs": len(trained.validation.pairs),
        "best_step": run.best_step or 0,
    }


def preference_loss(recipe: Preference) -> PreferenceLoss:
    loss: PreferenceLoss = plugins.bind("trainers.preference.losses", recipe.loss.name, recipe.loss.options)()
    return loss


def steps(recipe: Preference, pairs: int) -> int:
    return recipe.epochs * -(-pairs // recipe.batch_size)


def batches(recipe: Preference, side: Side, after: int) -> Iterator[TrainingBatch]:
    """The batches that follow step `after`, without end."""
    return map(side.batch, orders(recipe.seed, len(side.pairs), recipe.batch_size, after))


def build_learner(
    recipe: Preference,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    loss: PreferenceLoss,
    pairs: int,
) -> PairLearner:
    return PairLearner(
        model,
        tokenizer,
        PairObjective(loss),
        optimizer=recipe.optimizer,
        update=recipe.update,
        aggregate="sequence_sum",
        constant_length=1,
        dtype=recipe.dtype,
        total_steps=steps(recipe, pairs),
    )


def validated(learner: PairLearner, side: Side) -> dict[str, float]:
    found = values(told(rewards_of(learner, side)))
    return {f"validation/{name}": value for name, value in found.items()}


def rewards_of(learner: PairLearner, side: Side) -> Tensor:
    """(pairs, 2) implicit rewards of the better and the worse."""
    return torch.cat([learner.rewards(side.batch(part)) for part in _parts(len(side.pairs))])


def _reference(recipe: Preference, model: PreTrainedModel | PeftModel, pairs: Sequence[Pair]) -> list[Tensor]:
    """(t,) log-probs of the tokens of each answer, two a pair, by the model as it is now: adapters that are new change
    nothing."""
    say(f"log-probs of the reference for {len(pairs)} pairs")
    scorer, found = Scorer(model, recipe.update, recipe.dtype), []
    for part in _parts(len(pairs)):
        batch = batch_of([pairs[i] for i in part], part, None).graded
        found += [row[: int(n)].clone() for row, n in zip(scorer.logprobs(batch), batch.lengths, strict=True)]
    return found


def _parts(count: int) -> Iterator[range]:
    return (range(first, min(first + AT_ONCE, count)) for first in range(0, count, AT_ONCE))
