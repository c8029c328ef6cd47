"""Worst-case memory and token budget of an RL recipe, by arithmetic on the model's configuration. Bytes and tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlcore.protocols import Engine
from rlcore.recipe.schema import RL

FLOAT32, WIDTH = 4, {"float32": 4, "bfloat16": 2}
ACTIVATIONS_PER_LAYER = 20  # hidden-size vectors kept per token and layer for the backward pass of a Llama-style block


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama-style model that memory depends on."""

    parameters: int
    layers: int
    hidden: int
    vocabulary: int
    kv_width: int  # key-value heads times head size


def memory(recipe: RL, shape: Shape, longest_prompt: int, engine: type[Engine]) -> dict[str, int]:
    """Bytes by purpose, every completion as long as `max_new_tokens` lets it be."""
    tokens = longest_prompt + recipe.rollout.max_new_tokens
    width = WIDTH[recipe.dtype]
    trained = shape.parameters if recipe.lora is None else _lora_parameters(recipe.lora.rank, shape)
    adapter_alone = recipe.lora is not None and recipe.lora.serve == "adapter"
    sequences = recipe.rollout.prompts_per_step * recipe.rollout.samples
    sequence_cache = 2 * width * tokens * shape.layers * shape.kv_width
    microbatch = max(recipe.update.tokens_per_microbatch, tokens)
    kept = 2 if recipe.update.gradient_checkpointing else ACTIVATIONS_PER_LAYER
    return {
        "trained weights": FLOAT32 * (shape.parameters if recipe.lora is None else shape.parameters + trained),
        "gradients and optimiser": 3 * FLOAT32 * trained,
        "rollout copy of the weights": width * shape.parameters,
        "copy of the weights for a sync": width * (trained if adapter_alone else shape.parameters),
        "reference model": FLOAT32 * shape.parameters if recipe.algorithm.kl.coefficient and recipe.lora is None else 0,
        "critic": 4 * FLOAT32 * shape.parameters if recipe.algorithm.critic else 0,
        "key-value cache": engine.cache_bytes(sequences, sequence_cache, **recipe.rollout.engine.options),
        "activations of a micro-batch": width * microbatch * shape.layers * shape.hidden * kept,
        "logits of a chunk": 3 * FLOAT32 * min(recipe.update.logits_chunk, microbatch) * shape.vocabulary,
    }


def token_budget(recipe: RL, longest_prompt: int) -> Mapping[str, int]:
    """The most tokens that a step and the whole job can sample, and the longest sequence."""
    rounds = recipe.algorithm.dynamic_sampling.max_rounds if recipe.algorithm.dynamic_sampling else 1
    step = rounds * recipe.rollout.prompts_per_step * recipe.rollout.samples * recipe.rollout.max_new_tokens
    return {
        "sampled tokens per step": step,
        "sampled tokens in all": step * recipe.steps,
        "longest sequence": longest_prompt + recipe.rollout.max_new_tokens,
    }


def _lora_parameters(rank: int, shape: Shape) -> int:
    """Adapters on every linear layer of a Llama-style block: about 18 hidden-size vectors per rank and layer."""
    return 18 * rank * shape.hidden * shape.layers
