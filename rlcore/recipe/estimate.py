"""Worst-case memory of recipes that train a policy by RL or from pairs, and the token budget of RL: by arithmetic on the
model's configuration. Bytes and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlcore.protocols import Engine
from rlcore.recipe.schema import RL, Cluster, Preference

FLOAT32, WIDTH, PLACE = 4, {"float32": 4, "bfloat16": 2}, 4
ACTIVATIONS_PER_LAYER = 20  # hidden-size vectors kept per token and layer for the backward pass of a Llama-style block


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama-style model that memory depends on."""

    parameters: int
    layers: int
    hidden: int
    vocabulary: int
    kv_width: int  # key-value heads times head size


def memory(
    recipe: RL,
    shape: Shape,
    longest_prompt: int,
    engine: type[Engine],
    learned: Sequence[str] = (),
    judges: Mapping[str, int] | None = None,
    loaded: Mapping[str, int] | None = None,
    drafting: int = 0,
) -> dict[str, dict[str, int]]:
    """Bytes by process and purpose, every completion as long as `max_new_tokens` lets it be. `learned` are the labels of the
    reward components that learn, `judges` the bytes of those that ask a reward model, `loaded` of those that hold models in the
    process that launches. `drafting`: parameters of the model that drafts, if one does."""
    tokens = longest_prompt + recipe.rollout.max_new_tokens
    sampling, training = _sampling(recipe, shape, tokens, engine, drafting), _training(recipe, shape, tokens)
    reference = {"reference model": _reference(recipe, shape)}
    critic = _critic(recipe, shape, tokens) if recipe.algorithm.has_own_critic else {}
    rewards = {label: _learned_reward(recipe, shape, tokens, label) for label in learned}
    judging = {f"{label}'s reward model": count for label, count in (judges or {}).items() if count}
    here = {f"{label}'s models": count for label, count in (loaded or {}).items()}
    cluster = recipe.cluster
    if cluster is None:
        together = sampling | training | reference | critic | judging | here
        return {"this process": together | {name: count for parts in rewards.values() for name, count in parts.items()}}
    processes = {f"each of {cluster.workers} workers": sampling, f"each of {cluster.ranks} ranks": training}
    if critic:
        processes[f"each of {cluster.ranks} ranks of the critic"] = critic
    processes |= {f"each of {cluster.ranks} ranks of {label}": parts for label, parts in rewards.items()}
    processes |= {f"each of {cluster.judges} judges for {name}": {name: count} for name, count in judging.items()}
    if here:
        processes["this process"] = here
    if cluster.reference == "own":
        return processes | {"the reference model's process": reference}
    return processes | {f"each of {cluster.ranks} ranks": training | reference}


def pairs_memory(recipe: Preference, shape: Shape, tokens: int) -> dict[str, dict[str, int]]:
    """The same, of `job: preference`. `tokens`: of the longest prompt and answer; the two answers of a pair are never cut
    apart."""
    return {"this process": _learning(recipe, None, shape, 2 * tokens)}


def _sampling(recipe: RL, shape: Shape, tokens: int, engine: type[Engine], drafting: int) -> dict[str, int]:
    width = WIDTH[recipe.dtype]
    workers = recipe.cluster.workers if recipe.cluster else 1
    sequences = -(-recipe.rollout.prompts_per_step * recipe.rollout.samples // workers)
    sequence_cache = 2 * width * tokens * shape.layers * shape.kv_width
    return {
        "rollout copy of the weights": width * shape.parameters,
        **({"draft model": width * drafting} if drafting else {}),
        "key-value cache": engine.cache_bytes(sequences, sequence_cache, **recipe.rollout.engine.options),
    }


def _training(recipe: RL, shape: Shape, tokens: int) -> dict[str, int]:
    sent = WIDTH[recipe.dtype] * shape.parameters
    if recipe.lora and recipe.lora.serve == "adapter":
        sent = WIDTH[recipe.dtype] * _lora_parameters(recipe.lora.rank, shape)
    elif recipe.outliers and recipe.outliers.serve == "sparse":
        sent = (WIDTH[recipe.dtype] + PLACE) * int(recipe.outliers.share * shape.parameters)
    if recipe.cluster is not None:
        sent = min(sent, int(2 * recipe.cluster.bucket_mb * 2**20))
    parts = _learning(recipe, recipe.cluster, shape, tokens) | {"copy of the weights for a sync": sent}
    if recipe.rollout.compression is not None:
        parts["weights as engines decode them, for the parity probe"] = FLOAT32 * shape.parameters
    return parts


def _learning(recipe: RL | Preference, cluster: Cluster | None, shape: Shape, tokens: int) -> dict[str, int]:
    """`tokens`: the fewest that a micro-batch may have to hold."""
    frozen, trained = 0, shape.parameters
    if recipe.lora is not None:
        frozen, trained = shape.parameters, _lora_parameters(recipe.lora.rank, shape)
    elif recipe.outliers is not None:
        frozen, trained = shape.parameters, int(recipe.outliers.share * shape.parameters)
    weights, optimiser = _optimised(cluster, frozen, trained)
    return {
        "trained weights": weights,
        "gradients and optimiser": optimiser,
        "activations of a micro-batch": _activations(recipe, shape, tokens),
        "logits of a chunk": _logits(recipe, shape, tokens),
        **({"weights with the outliers": _patched(recipe, shape)} if recipe.outliers else {}),
    }


def _critic(recipe: RL, shape: Shape, tokens: int) -> dict[str, int]:
    """A model of its own, trained in full, whose head has one output."""
    weights, optimiser = _optimised(recipe.cluster, 0, shape.parameters)
    return {
        "critic": weights,
        "the critic's gradients and optimiser": optimiser,
        "the critic's activations of a micro-batch": _activations(recipe, shape, tokens),
    }


def _learned_reward(recipe: RL, shape: Shape, tokens: int, label: str) -> dict[str, int]:
    """A language model of its own, trained in full, and the one that it began as."""
    weights, optimiser = _optimised(recipe.cluster, 0, shape.parameters)
    return {
        f"{label}'s model": weights,
        f"{label}'s reference": FLOAT32 * shape.parameters,
        f"{label}'s gradients and optimiser": optimiser,
        f"{label}'s activations of a micro-batch": _activations(recipe, shape, tokens),
        f"{label}'s logits of a chunk": _logits(recipe, shape, tokens),
    }


def _optimised(cluster: Cluster | None, frozen: int, trained: int) -> tuple[int, int]:
    """Bytes of a process for the weights, and for gradients and AdamW's state; with ZeRO its share of them."""
    weights, moments, gradients = FLOAT32 * (frozen + trained), 2 * FLOAT32 * trained, FLOAT32 * trained
    if cluster is not None:
        ranks, zero = cluster.ranks, cluster.zero
        # DeepSpeed steps a second copy of the weights, which the ranks share.
        moments = -(-(moments + FLOAT32 * trained) // ranks) if zero else moments
        gradients = -(-gradients // ranks) if zero >= 2 else gradients
        weights = -(-weights // ranks) if zero == 3 else weights
    return weights, gradients + moments


def _patched(recipe: RL | Preference, shape: Shape) -> int:
    """What a forward pass makes of the matrices and keeps; with gradient checkpointing, of a layer."""
    return WIDTH[recipe.dtype] * shape.parameters // (shape.layers if recipe.update.gradient_checkpointing else 1)


def _microbatch(recipe: RL | Preference, tokens: int) -> int:
    return max(recipe.update.tokens_per_microbatch, tokens)


def _activations(recipe: RL | Preference, shape: Shape, tokens: int) -> int:
    kept = 2 if recipe.update.gradient_checkpointing else ACTIVATIONS_PER_LAYER
    return WIDTH[recipe.dtype] * _microbatch(recipe, tokens) * shape.layers * shape.hidden * kept


def _logits(recipe: RL | Preference, shape: Shape, tokens: int) -> int:
    return 3 * FLOAT32 * min(recipe.update.logits_chunk, _microbatch(recipe, tokens)) * shape.vocabulary


def _reference(recipe: RL, shape: Shape) -> int:
    """Of a policy that adapts, it is the policy with its adapters switched off."""
    return FLOAT32 * shape.parameters if recipe.algorithm.kl.coefficient and not recipe.adapts else 0


def token_budget(recipe: RL, longest_prompt: int, greedy: bool) -> Mapping[str, int]:
    """The most tokens that a step and the whole job can sample, a `greedy` completion of each problem too or not, and the
    longest sequence."""
    rounds = recipe.algorithm.dynamic_sampling.max_rounds if recipe.algorithm.dynamic_sampling else 1
    step = rounds * recipe.rollout.prompts_per_step * (recipe.rollout.samples + greedy) * recipe.rollout.max_new_tokens
    return {
        "sampled tokens per step": step,
        "sampled tokens in all": step * recipe.steps,
        "longest sequence": longest_prompt + recipe.rollout.max_new_tokens,
    }


def _lora_parameters(rank: int, shape: Shape) -> int:
    """Adapters on every linear layer of a Llama-style block: about 18 hidden-size vectors per rank and layer."""
    return 18 * rank * shape.hidden * shape.layers
