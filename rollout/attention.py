"""Attention for decoding with grouped queries: the keys of a group are read once, instead of copied for each of its heads.

Used by the transformers engine. Transformers' own SDPA path repeats keys and values whenever there is a mask; for
SmolLM2-135M on a CPU that copy took ten times as long as the attention itself. For a single query a row, two batched products
are up to twice as fast on a CPU as its SDPA kernel, which is made for many.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

NAME = "rlcore_grouped_query"


def grouped_query_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Query (rows, heads, queries, width), key and value (rows, groups, columns, width) → (rows, queries, heads, width).

    One query a row (decoding): the heads of a group become the queries of one attention. Several: plain SDPA, causal where
    there is no mask.
    """
    rows, heads, queries, width = query.shape
    if queries == 1:
        grouped = query.view(rows, key.shape[1], -1, width)
        attend = _two_products if query.device.type == "cpu" else F.scaled_dot_product_attention
        output = attend(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    else:
        causal = attention_mask is None
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, is_causal=causal, scale=scaling, enable_gqa=True
        )
    return output.reshape(rows, heads, queries, width).transpose(1, 2).contiguous(), None


def _two_products(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, scale: float | None) -> Tensor:
    """softmax(QKᵀ·scale + mask)·V, the softmax in float32."""
    scores = query @ key.transpose(2, 3) * (scale or query.shape[-1] ** -0.5)
    if attn_mask is not None:  # True where a column is seen, or what to add, as in SDPA
        scores = scores.where(attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


AttentionInterface.register(NAME, grouped_query_attention)
