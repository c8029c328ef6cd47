"""What a model costs by count: the FLOPs of a token, the bytes of its cache, its parameters. No clock, no kernel.

A FLOP is a multiplication or an addition of a matrix product, so 2·m·n for a vector times an (m, n) matrix; norms, activations
and softmax are left out, as usual. What is counted is a forward pass; a training step is 3 of them. For a Mixture-of-Modules
(`compress.architectures.mixture_of_modules`) the count follows the routing that was measured (`compress.mixture.router.usage`):
what the algorithm needs. Its implementation saves the modules that are not chosen, and not the rest (`compress.mixture.block`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from compress.mixture.router import Usage


def flops(config: LlamaConfig, context: float, usage: Usage | None = None) -> float:
    """Forward FLOPs of a token that attends to `context` tokens, itself among them: for a whole sequence of T, which is read in
    one pass, (T + 1) / 2 on average. `usage`: of a Mixture-of-Modules; None is one of which no token skips anything.
    """
    width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    groups = config.num_key_value_heads * config.head_dim
    projections = 2 * width * (2 * heads + 2 * groups)
    products = 4 * heads * context
    feed_forward = 6 * width * config.intermediate_size
    total = 2 * width * config.vocab_size + vanilla_layers(config) * (projections + products + feed_forward)
    if config.model_type != "mixture_of_modules":
        return total
    attended, fed, present = _per_round(config, usage)
    rounds = config.blocks * config.rounds
    total += rounds * (_router(config, config.attention_modules) + _router(config, config.ffn_modules))
    # a present token reads those of its context that are present
    return total + sum(
        a * projections + p * p * products + f * feed_forward for a, f, p in zip(attended, fed, present, strict=True)
    )


def cache_bytes(config: LlamaConfig, dtype: torch.dtype, usage: Usage | None = None) -> float:
    """Bytes of keys and values for each token. With `usage`, of those that anyone reads: the caches here keep all the same."""
    layer = 2 * config.num_key_value_heads * config.head_dim * dtype.itemsize
    if config.model_type != "mixture_of_modules":
        return vanilla_layers(config) * layer
    return (vanilla_layers(config) + sum(_per_round(config, usage)[2])) * layer


def layers(config: LlamaConfig, usage: Usage | None = None) -> float:
    """How many layers' worth of modules a token is given: half of the attention and feed-forward modules together."""
    total = float(vanilla_layers(config))
    if config.model_type == "mixture_of_modules":
        attended, fed, _ = _per_round(config, usage)
        total += (sum(attended) + sum(fed)) / 2
    return total


def parameters(config: LlamaConfig) -> int:
    """Of the model with its head; no weights are made."""
    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(config).num_parameters())


def vanilla_layers(config: LlamaConfig) -> int:
    if config.model_type != "mixture_of_modules":
        return int(config.num_hidden_layers)
    return int(config.bottom + config.blocks * config.anchor + config.top)


def _per_round(config: LlamaConfig, usage: Usage | None) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
    """For each round: attention modules and feed-forward modules a token, and the share of tokens that are present."""
    if usage is None:
        rounds = config.blocks * config.rounds
        return [config.router_top_k] * rounds, [config.router_top_k] * rounds, [1.0] * rounds
    attended, fed = (share[..., :-1].sum(-1).flatten().tolist() for share in (usage.attention, usage.feed_forward))
    return attended, fed, (1 - usage.absent).flatten().tolist()


def _router(config: LlamaConfig, modules: int) -> int:
    width, dim = config.hidden_size, config.router_dim
    body = 3 * dim * (width + dim) if config.router == "gru" else dim * width
    return 2 * (body + dim * (modules + 1))
