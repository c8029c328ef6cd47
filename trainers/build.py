"""From a recipe, and what was planned for it, to the models and the parts of the loop."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlcore import models, plugins
from rlcore.models import ModelSpec
from rlcore.prompts import Prompter, stop_ids
from rlcore.protocols import Engine
from rlcore.recipe.schema import RL, Job
from trainers.learner import Learner
from trainers.loop import Parts
from trainers.objective import Objective
from trainers.plan import Plan, longest_prompt
from trainers.prepare import Prepare
from trainers.sampler import Sampler
from trainers.scorer import Scorer, WithoutAdapters


def build_parts(recipe: RL, asked: Plan, location: str) -> Parts:
    """Everything the loop needs, with the models loaded. Raises UserError, before that, for prompts that do not fit."""
    tokenizer = models.load_tokenizer(location, recipe.trust_remote_code)
    prompter = Prompter(recipe.prompt, tokenizer)
    longest_prompt(recipe, asked, prompter, models.context(location, recipe.trust_remote_code))
    engine = build_engine(recipe, location, tokenizer, prompter)
    policy = build_policy(recipe, location)
    learner = build_learner(recipe, policy, tokenizer, asked.objective)
    reference = build_reference(recipe, location, policy)
    sampler = Sampler(recipe, asked.problems, prompter, engine, asked.rewards)
    prepare = Prepare(sampler.select, asked.advantage, reference, recipe.algorithm.mask_truncated)
    return Parts(sampler, engine, asked.rewards, prepare, learner, recipe.dtype)


def build_engine(recipe: RL, location: str, tokenizer: PreTrainedTokenizerBase, prompter: Prompter) -> Engine:
    """The engine with its own copy of the model, in the dtype it is served in."""
    spec = recipe.rollout.engine
    make = plugins.bind("rollout.engines", spec.name, spec.options)
    rank = recipe.lora.rank if recipe.lora and recipe.lora.serve == "adapter" else 0
    model = ModelSpec(location, recipe.dtype, recipe.device, recipe.trust_remote_code, adapter_rank=rank)
    engine: Engine = make(model, tokenizer, stop_ids(model, prompter))
    return engine


def build_policy(recipe: Job, location: str) -> PreTrainedModel | PeftModel:
    """The model to be trained, in float32, with fresh LoRA adapters if the recipe has them."""
    torch.manual_seed(recipe.seed)  # adapters and dropout, whatever this process did before: making a toy, say
    model = ModelSpec(location, "float32", recipe.device, recipe.trust_remote_code).load()
    if recipe.lora is None:
        return model
    lora = recipe.lora
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets, task_type="CAUSAL_LM"
    )
    adapted: PeftModel = get_peft_model(model, config)
    return adapted


def build_learner(
    recipe: RL, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, objective: Objective
) -> Learner:
    return Learner(
        model,
        tokenizer,
        objective,
        optimizer=recipe.optimizer,
        update=recipe.update,
        aggregate=recipe.algorithm.aggregate,
        constant_length=recipe.rollout.max_new_tokens,
        dtype=recipe.dtype,
        total_steps=recipe.steps,
        serve=recipe.lora.serve if recipe.lora else "merged",
    )


def build_reference(recipe: RL, location: str, policy: PreTrainedModel | PeftModel) -> Scorer | None:
    """The model that the policy started from, where a KL term needs it."""
    if not recipe.algorithm.kl.coefficient:
        return None
    if recipe.lora is not None:
        return WithoutAdapters(policy, recipe.update, recipe.dtype)
    model = ModelSpec(location, "float32", recipe.device, recipe.trust_remote_code).load()
    return Scorer(model, recipe.update, recipe.dtype)
