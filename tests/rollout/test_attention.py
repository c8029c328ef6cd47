"""Grouped-query attention: the heads of a group share their keys, in decoding and in prefill."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rollout.attention import grouped_query_attention


def test_grouped_query_attention_is_that_of_repeated_heads() -> None:
    """Decoding (one query, masked columns) and prefill, against keys repeated for every head."""
    generator = torch.Generator().manual_seed(0)
    key, value = (torch.randn(2, 3, 7, 8, generator=generator) for _ in range(2))
    repeated = [tensor.repeat_interleave(4, dim=1) for tensor in (key, value)]
    seen = torch.arange(7)[None, :] < torch.tensor([[3], [7]])
    for queries, mask in ((1, seen[:, None, None, :]), (7, torch.ones(7, 7).tril().bool()[None, None]), (7, None)):
        query = torch.randn(2, 12, queries, 8, generator=generator)
        causal = mask is None
        expected = F.scaled_dot_product_attention(query, *repeated, attn_mask=mask, is_causal=causal)
        got, _ = grouped_query_attention(torch.nn.Module(), query, key, value, mask)
        torch.testing.assert_close(got, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)
