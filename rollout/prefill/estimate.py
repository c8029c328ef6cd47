"""What heads attend to, seen through a block of queries or through averages of blocks; and what is chosen by it.

All queries are scaled: scores are products of queries and keys. Estimates are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rollout.prefill.blocks import blocked, causal, count


@dataclass(frozen=True)
class Last:
    """How the last block of queries attends, as distributions over N: where keys stand, and how far back they are. Those over
    blocks are sums of so many tokens."""

    vertical: Tensor  # (heads, N)
    slash: Tensor  # (heads, N); 0 is a query's own token
    vertical_blocks: Tensor  # (heads, blocks)
    slash_blocks: Tensor  # (heads, blocks)


def last_block(query: Tensor, key: Tensor, block: int) -> Last:
    """query, key (heads, N, width)."""
    rows = query[:, -block:].float()
    heads, size, _ = rows.shape
    tokens = key.shape[1]
    scores = rows @ key.float().mT
    scores[:, :, tokens - size :] += torch.full((size, size), -torch.inf, device=query.device).triu(1)
    weights = scores.softmax(-1)
    vertical = weights.mean(1)
    # turned round and padded, the next row one place further on: what is equally far back stands in one column
    turned = F.pad(weights.flip(-1), (0, size)).contiguous()
    width = tokens + size
    skewed = turned.as_strided((heads, size, tokens), (size * width, width - 1, 1), size - 1)
    slash = skewed.mean(1)
    return Last(vertical, slash, _pooled(vertical, block), _pooled(slash, block))


def _pooled(distribution: Tensor, block: int) -> Tensor:
    """(heads, N) → (heads, blocks), summed."""
    return blocked(distribution[..., None], block).sum((-1, -2))


def needed(distribution: Tensor, gamma: float, block: int) -> Tensor:
    """(heads, N) → (heads,): the largest so many blocks of tokens, of which the largest tokens add up to `gamma`."""
    tokens = (distribution.sort(-1, descending=True).values.cumsum(-1) <= gamma).sum(-1)
    return tokens // block + 1


def vertical_slash(last: Last, columns: Tensor, diagonals: Tensor) -> Tensor:
    """(heads, blocks, blocks): of each head, the so many (heads,) blocks of keys that weigh most, the first block always; and
    the diagonals of blocks that do, a block's own always."""
    verticals, slashes = _largest(last.vertical_blocks, columns), _largest(last.slash_blocks, diagonals)
    verticals[:, 0] = slashes[:, 0] = True
    at = torch.arange(verticals.shape[1], device=verticals.device)
    back = (at[:, None] - at[None, :]).clamp_min(0)
    return (verticals[:, None, :] | slashes[:, back]) & causal(len(at), at.device)


def _largest(weights: Tensor, counts: Tensor) -> Tensor:
    """bool: in each row the so many largest."""
    ranks = weights.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return ranks < counts[:, None]


def averaged(query: Tensor, key: Tensor, block: int) -> Tensor:
    """(heads, blocks, blocks): softmax over the blocks of averaged keys, for averaged queries; rows add up to 1."""
    queries, keys = (_means(tensor.float(), block) for tensor in (query, key))
    scores = queries @ keys.mT
    return scores.where(causal(scores.shape[1], scores.device), -torch.inf).softmax(-1)


def averaged_last(query: Tensor, key: Tensor, block: int) -> Tensor:
    """(heads, blocks): the same for the last block of queries, as `last_block` takes it."""
    rows = query[:, -block:].float().mean(1, keepdim=True)
    return (rows @ _means(key.float(), block).mT).softmax(-1)[:, 0]


def _means(tensor: Tensor, block: int) -> Tensor:
    """(heads, N, width) → (heads, blocks, width); of a shorter last block, the mean of what it has."""
    tokens = tensor.shape[1]
    sizes = torch.full((count(tokens, block), 1), block, device=tensor.device)
    sizes[-1] = tokens - block * (len(sizes) - 1)
    return blocked(tensor, block).sum(-2) / sizes


def covering(weights: Tensor, mass: float) -> Tensor:
    """bool, along the last axis: the fewest that add up to `mass`."""
    values, order = weights.sort(dim=-1, descending=True, stable=True)
    before = values.cumsum(-1) - values
    return torch.zeros_like(weights, dtype=torch.bool).scatter(-1, order, before < mass)


def distance(p: Tensor, q: Tensor) -> Tensor:
    """√JS(p, q) of distributions along the last axis: 0 where they are the same, √ln 2 where they share nothing."""
    entropy = [torch.special.entr(each).sum(-1) for each in ((p + q) / 2, p, q)]
    return (entropy[0] - (entropy[1] + entropy[2]) / 2).clamp_min(0).sqrt()


def block_averages(query: Tensor, key: Tensor, block: int) -> Tensor:
    """(heads, blocks, blocks): of the whole attention, how much a query of a block gives to a block of keys, on average; rows
    add up to 1. As dear as the scores of dense attention."""
    heads, tokens, _ = query.shape
    blocks = count(tokens, block)
    found = torch.zeros(heads, blocks, blocks, device=query.device)
    for row, rows in enumerate(query.float().split(block, dim=1)):
        start, size = row * block, rows.shape[1]
        scores = rows @ key[:, : start + size].float().mT
        scores[:, :, start:] += torch.full((size, size), -torch.inf, device=query.device).triu(1)
        found[:, row, : row + 1] = _pooled(scores.softmax(-1).mean(1), block)
    return found
