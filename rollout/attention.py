"""Attention for decoding with grouped queries: the keys of a group are read once, instead of copied for each of its heads.

Used by the transformers engine. Transformers' own SDPA path repeats keys and values whenever there is a mask; for
SmolLM2-135M on a CPU that copy took ten times as long as the attention itself.
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
        output = F.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    else:
        causal = attention_mask is None
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, is_causal=causal, scale=scaling, enable_gqa=True
        )
    return output.reshape(rows, heads, queries, width).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped_query_attention)
