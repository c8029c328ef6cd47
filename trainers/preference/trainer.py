"""Trains a policy from pairs of answers: `job: preference`. Its steps are those of `trainers.supervised`.

The reference is the model that training starts from. Its log-probs are computed once, before the first step: no second model is
held.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewards.implicit_reward import ImplicitRewardModel, Start
from rlcore import plugins
from rlcore.batch import TrainingBatch
from rlcore.models import weights_digest
from rlcore.recipe.schema import Preference
from rlcore.run.console import say
from rlcore.run.folder import Run, write_aside
from rlcore.run.metrics import values
from trainers.preference.codes import code_metrics
from trainers.preference.latent import LatentLearner, LatentLogprobs, LatentObjective
from trainers.preference.objective import Judged, PairLearner, PairObjective, PreferenceLoss, pair_metrics
from trainers.preference.pairs import Material, Pair, batch_of
from trainers.scorer import Scorer
from trainers.supervised import best, learn, orders, say_written, written_step

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
    reward_model: ImplicitRewardModel  # as which the policy can be read


def train(
    recipe: Preference,
    run: Run,
    location: str,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
) -> Trained:
    """`location`: where the model was loaded from.

    Train until the recipe says stop, and take up the weights of the best validation. A resumed run goes on from its last
    checkpoint."""
    loss = preference_loss(recipe)
    asks = loss.reward.relative
    reward_model = ImplicitRewardModel(loss.reward, recipe.prompt, _start(location) if asks else None)
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
    return Trained(learner, training, validation, reward_model)


def finish(recipe: Preference, run: Run, trained: Trained) -> dict[str, float]:
    """Write the plain checkpoint to the folder's `model`, with how it is read as a reward model; what the pairs held out say of
    it."""
    say_written(run)
    shutil.copytree(best(run, NAME) / "model", run.folder / "model", dirs_exist_ok=True)
    trained.reward_model.save(run.folder / "model")
    found = judged(trained.learner, trained.validation)
    write_aside(run.folder / "pairs.jsonl", "".join(f"{json.dumps(row)}\n" for row in _rows(found, trained.validation.pairs)))
    return {
        **{name.replace("/", "_"): value for name, value in measured(found, trained.validation.pairs).items()},
        "train_pairs": len(trained.training.pairs),
        "validation_pairs": len(trained.validation.pairs),
        "written_step": written_step(run),
    }


def _rows(found: Judged, pairs: Sequence[Pair]) -> Iterator[dict[str, Any]]:
    """Of each held-out pair its rewards, what the data knows that decided it, and its codes' probabilities."""
    for i, pair in enumerate(pairs):
        chosen, rejected = found["rewards"][i].tolist()
        row = {"id": pair.id, "chosen": chosen, "rejected": rejected, "factor": pair.meta.get("factor")}
        codes = {name.removeprefix("log_"): found[name][i].exp().tolist() for name in found if name.startswith("log_")}
        yield row | codes


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
    settings: dict[str, Any] = dict(
        optimizer=recipe.optimizer,
        update=recipe.update,
        aggregate="sequence_sum",
        constant_length=1,
        dtype=recipe.dtype,
        total_steps=steps(recipe, pairs),
    )
    if (latent := recipe.latent) is None:
        return PairLearner(model, tokenizer, PairObjective(loss), **settings)
    head = partial(LatentLogprobs, settings=latent, seed=recipe.seed)
    objective = LatentObjective(loss, latent.kl_weight)
    return LatentLearner(model, tokenizer, objective, head=head, latent=latent, seed=recipe.seed, **settings)


def validated(learner: PairLearner, side: Side) -> dict[str, float]:
    return measured(judged(learner, side), side.pairs)


def judged(learner: PairLearner, side: Side) -> Judged:
    parts = [learner.judged(side.batch(part)) for part in _parts(len(side.pairs))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def measured(found: Judged, pairs: Sequence[Pair]) -> dict[str, float]:
    metrics = values(pair_metrics(found["rewards"]))
    if "log_prior" in found:
        codes = code_metrics(found["log_posterior"], found["log_prior"], [pair.meta.get("factor") for pair in pairs])
        metrics |= {f"codes/{name}": value for name, value in codes.items()}
    return {f"validation/{name}": value for name, value in metrics.items()}


def _start(location: str) -> Start:
    where = str(Path(location).absolute()) if Path(location).is_dir() else location
    return Start(where, weights_digest(location))


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
