"""A block of a Mixture-of-Modules: rounds over one set of modules, and how the modules that a token chose are put together.

In each round, with s the weights of the router (`compress.mixture.router`) and SKIP adding 0:

    q, k, v = Σ_{m ∈ top-K} W_m^{qkv} LN_m(x),     x ← x + Σ_{m ∈ top-K} s_m W_m^o attention(q, k, v)
    x ← x + Σ_{m ∈ top-K} s_m FFN_m(LN_m(x))

The queries, keys and values of the chosen modules are mixed before the one attention of the round (`weighted_qkv`: with s_m;
the paper's code does not). The router of the feed-forward modules reads what these do: the stream after the attention.

A token that takes no attention module in a round is absent from it: no token attends to it. With K > 1 every token takes one.

What choosing saves: projections and feed-forward modules are computed for the tokens that chose them only. The products of
queries with keys, and of weights with values, are computed for absent tokens too, and masked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb, eager_attention_forward

from compress.mixture.router import ROUTERS, Round, Routing, choose

if TYPE_CHECKING:
    from compress.architectures.mixture_of_modules import MixtureOfModulesConfig

ABSENT = 32768.0  # the first number of an absent token's value: exact in every float format, and far from what values are


class AttentionModule(nn.Module):
    def __init__(self, config: MixtureOfModulesConfig) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.attention_bias
        heads, groups = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.norm = LlamaRMSNorm(width, eps=config.rms_norm_eps)
        self.q_proj = nn.Linear(width, heads, bias=bias)
        self.k_proj = nn.Linear(width, groups, bias=bias)
        self.v_proj = nn.Linear(width, groups, bias=bias)
        self.o_proj = nn.Linear(heads, width, bias=bias)

    def qkv(self, hidden: Tensor) -> Tensor:
        """(tokens, width) → queries, keys and values side by side (tokens, (heads + 2 groups) · head_dim)."""
        normed = self.norm(hidden)
        return torch.cat([self.q_proj(normed), self.k_proj(normed), self.v_proj(normed)], -1)


class FeedForwardModule(nn.Module):
    def __init__(self, config: MixtureOfModulesConfig) -> None:
        super().__init__()
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.mlp(self.norm(hidden))
        return output


class Block(GradientCheckpointingLayer):
    """Rounds over one set of modules. The keys and values of round r go to cache layer `first` + r."""

    is_causal = True  # what attention functions ask of the module that calls them, as are the next two

    def __init__(self, config: MixtureOfModulesConfig, first: int) -> None:
        super().__init__()
        self.config, self.first = config, first
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.attention = nn.ModuleList(AttentionModule(config) for _ in range(config.attention_modules))
        self.feed_forward = nn.ModuleList(FeedForwardModule(config) for _ in range(config.ffn_modules))
        router = ROUTERS[config.router]
        self.attention_router = router(config.hidden_size, config.router_dim, config.attention_modules + 1)
        self.feed_forward_router = router(config.hidden_size, config.router_dim, config.ffn_modules + 1)

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, tuple[Round, ...]]:
        """Hidden (rows, tokens, width) → the same shape, and what the routers said."""
        attention_state = feed_forward_state = None
        rounds = []
        for number in range(self.config.rounds):
            attention, attention_state = self._route(self.attention_router, hidden, attention_state)
            layer = self.first + number
            hidden = hidden + self._attend(
                hidden, attention, layer, attention_mask, position_embeddings, past_key_values, **kwargs
            )
            feed_forward, feed_forward_state = self._route(self.feed_forward_router, hidden, feed_forward_state)
            hidden = hidden + gathered(
                list(self.feed_forward), hidden, feed_forward.chosen, feed_forward.weights, hidden.shape[-1]
            )
            rounds.append(Round(attention, feed_forward))
        return hidden, tuple(rounds)

    def _route(self, router: nn.Module, hidden: Tensor, state: Tensor | None) -> tuple[Routing, Tensor | None]:
        logits, state = router(hidden.flatten(0, 1), state)
        settings = self.config
        logits = logits.view(*hidden.shape[:2], -1)
        return choose(logits, top_k=settings.router_top_k, tau=settings.router_tau, renormalise=settings.renormalise), state

    def _attend(
        self,
        hidden: Tensor,
        routing: Routing,
        layer: int,
        mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        cache: Cache | None,
        **kwargs: Any,
    ) -> Tensor:
        """F_A(hidden) of one round, (rows, tokens, width)."""
        settings = self.config
        heads, groups = settings.num_attention_heads, settings.num_key_value_heads
        weights = routing.weights if settings.weighted_qkv else torch.ones_like(routing.weights)
        width = (heads + 2 * groups) * settings.head_dim
        mixed = gathered([m.qkv for m in self.attention], hidden, routing.chosen, weights, width)
        per_head = mixed.unflatten(-1, (-1, settings.head_dim)).transpose(1, 2)
        query, key, value = per_head.split([heads, groups, groups], 1)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if settings.router_top_k == 1:
            value = marked(value, routing.skips)
        if cache is not None:
            key, value = cache.update(key, value, layer)
        if settings.router_top_k == 1:
            mask = without_absent(mask, routing.skips, value)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(settings._attn_implementation, eager_attention_forward)
        dropout = settings.attention_dropout if self.training else 0.0
        read, _ = attention(self, query, key, value, mask, dropout=dropout, scaling=self.scaling, **kwargs)
        outputs = [m.o_proj for m in self.attention]
        return gathered(outputs, read.flatten(2), routing.chosen, routing.weights, hidden.shape[-1])


def gathered(modules: list[Callable[[Tensor], Tensor]], hidden: Tensor, chosen: Tensor, weights: Tensor, width: int) -> Tensor:
    """Σ_k weight_k · module_{chosen_k}(hidden): each module is computed for the tokens that chose it only.

    Hidden (…, features), chosen and weights (…, K) → (…, width) in hidden's dtype. An index that no module has adds 0. A module
    that no token chose is called with none, so that its parameters have a gradient, of 0.
    """
    flat, chosen, weights = (x.flatten(0, -2) for x in (hidden, chosen, weights))
    total = flat.new_zeros(len(flat), width)
    for index, module in enumerate(modules):
        token, slot = (chosen == index).nonzero(as_tuple=True)
        part = module(flat[token]) * weights[token, slot, None]
        total.index_add_(0, token, part.to(total.dtype))
    return total.view(*hidden.shape[:-1], width)


def marked(value: Tensor, absent: Tensor) -> Tensor:
    """Values (rows, groups, tokens, head_dim), which are 0 for the absent (rows, tokens), with ABSENT as those's first number.

    The mark goes with the values into whatever cache there is, so that a later token knows who was absent.
    """
    value = value.clone()
    value[:, 0, :, 0] = value[:, 0, :, 0].masked_fill(absent, ABSENT)
    return value


def without_absent(mask: Tensor | None, absent: Tensor, value: Tensor) -> Tensor:
    """The mask with the columns of marked values (rows, groups, columns, head_dim) taken out: their weight is exactly 0.

    `mask` (rows, 1, queries, columns): what is seen (bool) or what to add; None is causal. `absent` (rows, queries): the
    queries of tokens that are absent themselves. Their rows stay as they are, as a row with nothing to see would be NaN; nobody
    reads what they attend to.
    """
    present = value[:, 0, :, 0] != ABSENT
    seen = present[:, None, None, :] | absent[:, None, :, None]
    if mask is None:
        queries, columns = seen.shape[2:]
        mask = torch.ones(queries, columns, dtype=torch.bool, device=seen.device).tril(columns - queries)
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
