"""What `rlcore train --dry-run` says of a recipe: its data, the first prompt as tokens, memory and the token budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from compress import job as compress
from compress import sensitivity
from compress.calibration import matrices
from compress.codec import Named, trial
from compress.texts import described, texts_of
from rewards.preference.preference import Preference as PreferenceReward
from rewards.process.process import Process
from rlcore import models, plugins
from rlcore.conversation import ConversationPrompter
from rlcore.data.mixture import load as load_problems
from rlcore.latent import refuse_latent
from rlcore.length_budget import describe, for_training
from rlcore.prompts import Prompter
from rlcore.protocols import LearnedReward
from rlcore.recipe.estimate import Shape, memory, pairs_memory, token_budget
from rlcore.recipe.schema import (
    RL,
    Altered,
    Annotate,
    Compress,
    Compression,
    DecodeBench,
    Evaluate,
    Heads,
    Job,
    Preference,
    Recipe,
    RewardModel,
    Sensitivity,
    Sft,
)
from rlcore.toy import warmstart
from rlcore.types import Problem
from rollout import annotate
from rollout.anytime import forced
from rollout.decoding import bench
from rollout.decoding.companion import Companion
from rollout.decoding.drafter import Drafter
from rollout.decoding.heads import load as load_heads
from rollout.drafters.compressed import Compressed
from rollout.drafters.heads import Heads as HeadsDrafter
from trainers import heads
from trainers.algorithm import needing
from trainers.build import build_drafter
from trainers.judged import material
from trainers.plan import longest_prompt, plan
from trainers.preference import pairs
from trainers.preference import trainer as preference
from trainers.quantised_base import quantiser
from trainers.reward_model import stage_steps


def preview(recipe: Recipe) -> Iterator[str]:
    """Lines to print. Everything that a launch would refuse before loading the model is refused here too."""
    if not isinstance(recipe, Annotate | Evaluate):
        refuse_latent(recipe.model)
    if recipe.quantised_base is not None:
        quantiser(recipe.quantised_base)
    yield from OF_JOB[type(recipe)](recipe)


def _rl(recipe: RL) -> Iterator[str]:
    asked = plan(recipe)
    asked.rewards.close()
    yield from asked.problems.describe()
    location = warmstart.architecture(recipe.model, recipe.seed)
    prompter = Prompter(recipe.prompt, models.load_tokenizer(location, recipe.trust_remote_code))
    if recipe.length_budget:
        yield describe(recipe.length_budget, recipe.steps)
    yield from _first(prompter, [for_training(asked.problems.problems[0], recipe.length_budget, recipe.seed, step=1)])
    longest = longest_prompt(recipe, asked, prompter, models.context(location, recipe.trust_remote_code))
    if recipe.rollout.anytime:
        after = forced(recipe.rollout.anytime, prompter, recipe.rollout.max_new_tokens)
        yield f"forced after a thought that is cut, {len(after.cut)} tokens: {prompter.tokenizer.decode(after.cut)!r}"
    budget = token_budget(recipe, longest, bool(needing(recipe, "greedy")))
    yield from (f"{name}: {count:,}" for name, count in budget.items())
    yield f"optimiser steps per step: {recipe.update.steps}" + (
        "" if recipe.update.steps > 1 else " (every ratio to the old policy is 1, so no clip acts)"
    )
    if recipe.rollout.compression is not None:
        yield from _compressed(recipe, recipe.rollout.compression, location)
    shape, drafter = _shape(location, recipe.trust_remote_code), build_drafter(recipe)
    if drafter is not None:
        yield _drafted(recipe, drafter, location)
    spec = recipe.rollout.engine
    plugins.bind("rollout.engines", spec.name, spec.options)
    engine = plugins.find("rollout.engines", spec.name)
    components = asked.rewards.components
    learned = [label for label, reward in components.items() if isinstance(reward, LearnedReward)]
    judges = {label: reward.judge.weights for label, reward in components.items() if isinstance(reward, Process)}
    loaded = {label: reward.weights for label, reward in components.items() if isinstance(reward, PreferenceReward)}
    drafting = _parameters(drafter, shape)
    yield from _memory(memory(recipe, shape, longest, engine, learned, judges, loaded, drafting))


def _compressed(recipe: RL, compression: Compression, location: str) -> Iterator[str]:
    """Which weights, to how many bytes, from when on and until when."""
    methods = [(method.name, method.options) for method in compression.methods]
    model, dtype = models.without_weights(location, recipe.trust_remote_code), getattr(torch, recipe.dtype)
    held, every = trial(methods, compression.keep_dense, dtype, model), dict(model.named_parameters())
    width = dtype.itemsize
    full = width * sum(p.numel() for p in every.values())
    sent = sum(held.values()) + width * sum(p.numel() for name, p in every.items() if name not in held)
    yield f"rollouts are compressed from step {compression.after + 1} on: {_told(methods)}; {len(held)} matrices"
    yield f"bytes a sync: {sent:,} in the place of {full:,}, which is all that decoding to dense weights saves"
    guard, corrected = compression.guard, recipe.algorithm.correction
    ends = [f"above {guard.kl:g} nats a token from the policy"] if guard.kl is not None else []
    ends += [f"when {guard.patience} steps gain nothing in {guard.gain}"] if guard.gain != "none" else []
    yield f"that ends {' or '.join(ends) or 'never'}; corrected by {corrected.name if corrected else 'nothing'}"


def _drafted(recipe: RL, drafter: Drafter | Compressed, location: str) -> str:
    """What drafts."""
    if isinstance(drafter, HeadsDrafter):
        load_heads(drafter.folder, models.configuration(location, recipe.trust_remote_code))
    if isinstance(drafter, Drafter):
        assert recipe.rollout.drafter is not None
        return f"drafts of {_told([(recipe.rollout.drafter.name, recipe.rollout.drafter.options)])}"
    model = models.without_weights(location, recipe.trust_remote_code)
    held = trial(drafter.methods, drafter.keep_dense, getattr(torch, recipe.dtype), model)
    return f"a copy of the policy drafts {drafter.tokens} tokens a pass: {_told(drafter.methods)}; {len(held)} matrices"


def _parameters(drafter: Drafter | Compressed | None, policy: Shape) -> int:
    """Of the model that drafts, if one does."""
    if isinstance(drafter, Compressed):
        return policy.parameters
    return models.parameters(drafter.location) if isinstance(drafter, Companion) else 0


def _told(methods: Sequence[Named]) -> str:
    return ", ".join(" ".join([name, *(f"{option}={value}" for option, value in given.items())]) for name, given in methods)


def _sft(recipe: Sft) -> Iterator[str]:
    problems = load_problems(recipe.data)
    yield f"{len(problems)} training problems"
    location = warmstart.architecture(recipe.model, recipe.seed)
    prompter = Prompter(recipe.prompt, models.load_tokenizer(location, recipe.trust_remote_code))
    if texts := texts_of(recipe.evaluated_on or [], prompter, models.context(location, recipe.trust_remote_code)):
        yield described(texts)
    yield from _first(prompter, problems)


def _reward_model(recipe: RewardModel) -> Iterator[str]:
    location = warmstart.architecture(recipe.model, recipe.seed)
    tokenizer = models.load_tokenizer(location, recipe.trust_remote_code)
    found = material(recipe, tokenizer, models.context(location, recipe.trust_remote_code))
    counts = [sum(len(text.labels) for text in side) for side in (found.train, found.validation)]
    yield f"{counts[0]} training examples, {counts[1]} of other problems for validation"
    first_text = found.train[0]
    ids, ends = first_text.row.ids, first_text.row.ends
    yield f"first text, {len(ids)} tokens: {tokenizer.decode(ids)!r}"
    yield f"token ids: {list(ids)}"
    yield f"labels: {', '.join(f'{y:g} at token {end}' for y, end in zip(first_text.labels, ends, strict=True))}"
    first, second = stage_steps(recipe, len(found.train))
    yield f"steps: {first + second}" + (f", the head alone in the first {first}" if first else "")
    lengths = [len(text.row.ids) for text in found.train]
    yield f"tokens an epoch: {sum(lengths):,}, at most {max(lengths)} a text"


def _preference(recipe: Preference) -> Iterator[str]:
    preference.preference_loss(recipe)
    location = warmstart.architecture(recipe.model, recipe.seed)
    tokenizer = models.load_tokenizer(location, recipe.trust_remote_code)
    found = pairs.material(
        recipe, ConversationPrompter(recipe.prompt, tokenizer), models.context(location, recipe.trust_remote_code)
    )
    yield f"{len(found.train)} training pairs, {len(found.validation)} of other prompts for validation"
    first = found.train[0]
    yield f"first prompt, {len(first.prompt)} tokens: {tokenizer.decode(first.prompt)!r}"
    yield f"token ids: {list(first.prompt)}"
    for name, answer in (("chosen", first.chosen), ("rejected", first.rejected)):
        yield f"{name}, {len(answer)} tokens: {tokenizer.decode(answer)!r}"
    lengths = [len(pair.prompt) + len(answer) for pair in found.train for answer in (pair.chosen, pair.rejected)]
    yield f"steps: {preference.steps(recipe, len(found.train))}"
    yield f"tokens an epoch: {sum(lengths):,}, at most {max(lengths)} a prompt and answer"
    yield from _memory(pairs_memory(recipe, _shape(location, recipe.trust_remote_code), max(lengths)))


def _annotate(recipe: Annotate) -> Iterator[str]:
    asked = annotate.plan(recipe)
    yield from asked.describe()
    location = warmstart.architecture(recipe.model, recipe.seed)
    prompter = Prompter(recipe.prompt, models.load_tokenizer(location, recipe.trust_remote_code))
    yield from _first(prompter, asked.problems)
    longest = annotate.longest_prompt(asked, prompter, models.context(location, recipe.trust_remote_code))
    yield f"longest sequence: {longest + asked.max_new_tokens}"


def _heads(recipe: Heads) -> Iterator[str]:
    plugins.bind("rollout.engines", recipe.rollout.engine.name, recipe.rollout.engine.options)
    problems, held_out = load_problems(recipe.data), load_problems(recipe.evaluated_on)
    location = warmstart.architecture(recipe.model, recipe.seed)
    yield f"{len(problems)} problems, {recipe.samples} samples each; {len(held_out)} held out"
    yield from _first(Prompter(recipe.prompt, models.load_tokenizer(location, recipe.trust_remote_code)), problems)
    yield from heads.describe(recipe, models.without_weights(location, recipe.trust_remote_code).config)
    yield f"optimiser steps of each: {heads.steps(recipe, len(problems))}"


def _compress(recipe: Compress) -> Iterator[str]:
    location = warmstart.architecture(recipe.model, recipe.seed)
    prompter = Prompter(recipe.prompt, models.load_tokenizer(location, recipe.trust_remote_code))
    yield from compress.describe(compress.plan(recipe, prompter, models.context(location, recipe.trust_remote_code)))
    yield f"to compress: {_matrices(models.without_weights(location, recipe.trust_remote_code), recipe)}"


def _sensitivity(recipe: Sensitivity) -> Iterator[str]:
    location = warmstart.architecture(recipe.model, recipe.seed)
    prompter = Prompter(recipe.prompt, models.load_tokenizer(location, recipe.trust_remote_code))
    model = models.without_weights(location, recipe.trust_remote_code)
    yield from sensitivity.describe(
        recipe,
        sensitivity.plan(recipe, prompter, models.context(location, recipe.trust_remote_code)),
        model.config.num_hidden_layers,
    )
    yield f"to change: {_matrices(model, recipe)}"


def _decode_bench(recipe: DecodeBench) -> Iterator[str]:
    location = warmstart.architecture(recipe.model, recipe.seed)
    prompter = Prompter(recipe.prompt, models.load_tokenizer(location, recipe.trust_remote_code))
    architecture = partial(warmstart.architecture, seed=recipe.seed)
    asked = bench.plan(recipe, prompter, models.context(location, recipe.trust_remote_code), architecture)
    yield from bench.describe(recipe, asked)
    yield from _first(prompter, asked.problems)


def _evaluate(recipe: Evaluate) -> Iterator[str]:
    plugins.bind("rollout.engines", recipe.eval.engine.name, recipe.eval.engine.options)
    problems = load_problems(recipe.eval.data)[: recipe.eval.limit]
    yield f"{len(problems)} problems, {recipe.eval.samples} samples each"
    location = warmstart.architecture(recipe.model, recipe.seed)
    yield from _first(Prompter(recipe.prompt, models.load_tokenizer(location, recipe.trust_remote_code)), problems)


OF_JOB: Mapping[type[Job], Callable[[Any], Iterator[str]]] = {
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


def _matrices(model: PreTrainedModel, recipe: Altered) -> str:
    weights = matrices(model, recipe.keep_dense)
    count = sum(weight.numel() for weight in weights.values())
    return f"{len(weights)} matrices, {count:,} of {model.num_parameters():,} parameters"


def _first(prompter: Prompter, problems: Sequence[Problem]) -> Iterator[str]:
    ids = prompter.render(problems[0])
    yield f"first prompt, {len(ids)} tokens: {prompter.text(problems[0])!r}"
    yield f"token ids: {list(ids)}"


def _memory(need: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """`need`: bytes by process and purpose."""
    for process, parts in need.items():
        yield f"memory of {process}, at worst: {_size(sum(parts.values()))}, of which"
        yield from (f"  {name}: {_size(count)}" for name, count in parts.items())


def _shape(location: str, trust_remote_code: bool) -> Shape:
    """The model's dimensions."""
    model = models.without_weights(location, trust_remote_code)
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(model.num_parameters(), config.num_hidden_layers, config.hidden_size, config.vocab_size, heads * head)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
