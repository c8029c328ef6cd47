"""From a recipe to its models and what works with them, each in this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.codec import Codec, codec
from rewards.process.prime import Prime
from rlcore import plugins
from rlcore.models import ModelSpec, without_weights
from rlcore.prompts import Prompter, stop_ids
from rlcore.protocols import Engine
from rlcore.recipe.schema import RL, Job, RewardModel
from rollout.decoding.drafter import Drafter
from rollout.drafters.compressed import Compressed
from rollout.drafting import make_drafter
from trainers.critic import Critic, TokenValues, ValueObjective
from trainers.implicit import ImplicitObjective
from trainers.learner import Learner
from trainers.logprobs import TokenLogprobs
from trainers.objective import LearnerObjective, Objective
from trainers.outliers import with_outliers
from trainers.scorer import Scorer, WithoutAdapters
from trainers.shared_critic import SharedActorCritic, SharedObjective, TokenLogprobsAndValues


def build_engine(recipe: RL, location: str, tokenizer: PreTrainedTokenizerBase, prompter: Prompter) -> Engine:
    """The engine with its own copy of the model, in the dtype it is served in."""
    spec = recipe.rollout.engine
    split = recipe.cluster.tensor_parallel if recipe.cluster else 1
    own: dict[str, Any] = {"tensor_parallel": split} if split > 1 else {}
    own |= {"drafter": drafter} if (drafter := build_drafter(recipe)) else {}
    make = plugins.bind("rollout.engines", spec.name, spec.options | own)
    rank = recipe.lora.rank if recipe.lora and recipe.lora.serve == "adapter" else 0
    model = ModelSpec(location, recipe.dtype, recipe.device, recipe.trust_remote_code, adapter_rank=rank)
    engine: Engine = make(model, tokenizer, stop_ids(model, prompter))
    return engine


def build_drafter(recipe: RL) -> Drafter | Compressed | None:
    """What drafts, if something does; without a model. Raises UserError as `make_drafter` does."""
    asked = recipe.rollout.drafter
    return None if asked is None else make_drafter(asked, recipe.rollout.engine.name, "rollout.drafter")


def build_start(recipe: Job, location: str) -> PreTrainedModel:
    """The model that training starts from, in float32."""
    return ModelSpec(location, "float32", recipe.device, recipe.trust_remote_code).load()


def build_policy(recipe: Job, location: str) -> PreTrainedModel | PeftModel:
    """The model to be trained, in float32, with fresh adapters if the recipe has them: LoRA's, or the outliers of the quantised
    base that is at `location` then (`trainers.quantised_base`)."""
    torch.manual_seed(recipe.seed)  # adapters and dropout, whatever this process did before: making a toy, say
    return _tuned(recipe, build_start(recipe, location), location, task_type="CAUSAL_LM")


def build_classifier(recipe: RewardModel, location: str) -> PreTrainedModel | PeftModel:
    """The reward model to be trained, in float32, its head without adapters: that learns itself."""
    torch.manual_seed(recipe.seed)
    model = ModelSpec(location, "float32", recipe.device, recipe.trust_remote_code).load_with_head(2, recipe.head, begins=True)
    return _tuned(recipe, model, location, exclude_modules=["score"])


def _tuned(recipe: Job, model: PreTrainedModel, location: str, **where: Any) -> PreTrainedModel | PeftModel:
    """`where`: of LoRA's adapters."""
    if recipe.outliers is not None:
        return with_outliers(model, location, recipe.outliers.train_norms)
    if (lora := recipe.lora) is None:
        return model
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets, **where)
    adapted: PeftModel = get_peft_model(model, config)
    return adapted


def build_codec(recipe: RL, location: str) -> Codec | None:
    """What compresses the policy for its engines, if the recipe has them serve a compressed copy."""
    compression = recipe.rollout.compression
    if compression is None:
        return None
    return codec(
        [(method.name, method.options) for method in compression.methods],
        compression.keep_dense,
        getattr(torch, recipe.dtype),
        shapes=partial(without_weights, location, recipe.trust_remote_code),
        start=partial(build_start, recipe, location),
        reassign=compression.reassign,
    )


def build_learner(
    recipe: RL, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, objective: Objective, **where: Any
) -> Learner:
    """`where`: the learner's `codec`, if it has one; its `backend` and `bucket_bytes`, if not plain torch."""
    head: type[TokenLogprobs] = TokenLogprobs
    kind: type[Learner] = Learner
    aim: LearnerObjective[Any] = objective
    critic = recipe.algorithm.critic
    if critic is not None and critic.shared:
        head, kind = TokenLogprobsAndValues, SharedActorCritic
        aim = SharedObjective(objective, ValueObjective(critic.clip), critic.coefficient)
    return kind(
        model,
        tokenizer,
        aim,
        optimizer=recipe.optimizer,
        update=recipe.update,
        aggregate=recipe.algorithm.aggregate,
        constant_length=recipe.rollout.max_new_tokens,
        dtype=recipe.dtype,
        total_steps=recipe.steps - (critic.warmup_steps if critic is not None else 0),
        head=partial(head, learns_entropy=recipe.algorithm.entropy.bonus > 0),
        serve=tuning.serve if (tuning := recipe.lora or recipe.outliers) else "merged",
        **where,
    )


def build_critic(recipe: RL, location: str, tokenizer: PreTrainedTokenizerBase, **where: Any) -> Critic:
    """The critic that the recipe asks for, from the weights that the policy starts from; trained in full, also beside a LoRA
    policy."""
    settings = recipe.algorithm.critic
    assert settings is not None  # the caller asks for one only then
    torch.manual_seed(recipe.seed)
    spec = ModelSpec(location, "float32", recipe.device, recipe.trust_remote_code)
    return Critic(
        spec.load_with_head(1, begins=True),
        tokenizer,
        ValueObjective(settings.clip),
        optimizer=recipe.optimizer.model_copy(update={"learning_rate": settings.learning_rate}),
        update=recipe.update,
        aggregate="token_mean",
        constant_length=recipe.rollout.max_new_tokens,
        dtype=recipe.dtype,
        total_steps=recipe.steps,
        head=TokenValues,
        **where,
    )


def build_implicit(
    recipe: RL, reward: Prime, location: str, tokenizer: PreTrainedTokenizerBase, **where: Any
) -> tuple[Learner, Scorer]:
    """The implicit reward model and its reference, both from the weights that the policy starts from; trained in full, also
    beside a LoRA policy."""
    own = {"learning_rate": reward.learning_rate, "max_grad_norm": reward.max_grad_norm}
    torch.manual_seed(recipe.seed)
    learner = Learner(
        build_start(recipe, location),
        tokenizer,
        ImplicitObjective(reward.beta),
        optimizer=recipe.optimizer.model_copy(update=own),
        update=recipe.update,
        aggregate="sequence_sum",
        constant_length=recipe.rollout.max_new_tokens,
        dtype=recipe.dtype,
        total_steps=recipe.steps,
        **where,
    )
    return learner, Scorer(build_start(recipe, location), recipe.update, recipe.dtype)


def build_reference(
    recipe: RL,
    location: str,
    policy: PreTrainedModel | PeftModel,
    module: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> Scorer | None:
    """The model that the policy started from, where a KL term needs it. `module` is what computes for the policy, if not
    itself."""
    if not recipe.algorithm.kl.coefficient:
        return None
    if recipe.adapts:
        return WithoutAdapters(policy, recipe.update, recipe.dtype, module)
    return Scorer(build_start(recipe, location), recipe.update, recipe.dtype)
