"""Demonstrations in a prompt, and which of them each sees: how K blocks d_1 … d_K, an input with its label each, stand before a
query q. Of the three layouts `rdsca` is Re-Demonstrations with Sliding Causal Attention (arXiv 2310.19572):

    plain      d_1 … d_K | q                    as ever: d_j sees d_1 … d_j, and nothing of what follows
    rdsca      d_2 … d_K  d_1 … d_K | q         block b = 1 … 2K−1 sees blocks b−K < b' ≤ b
    repeated   d_2 … d_K  d_1 … d_K | q         a control: causal attention, without the window

Within a block attention is causal, and all see the prefix (BOS, instructions), which is block 0. The replicas in front are
there for the originals to look at. With the window the original of d_j, which is block K−1+j, sees blocks j … K−1+j: the
replicas of d_{j+1} … d_K, then d_1 … d_{j−1}, and itself, so every demonstration exactly once. Block j−1, its own replica, is
the first one out of reach. `repeated` lets it in, and with it the label of d_j before d_j shows what is to be labelled so.

That holds for what a layer attends to. Through the layers below, what a replica says still travels: that of d_{j+1} saw that
of d_j, and d_j sees it. One layer leaks nothing; deeper models may learn of a label in this way, and `own` of `job: in_context`
says by how much they do.

Positions count tokens from the start of the prefix on. The query sees the prefix and d_1 … d_K: replicas are `dropped` before
it is read. That of `repeated` sees everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcore.protocols import Tokens
from rlcore.recipe.schema import Layout

PREFIX = 0


@dataclass(frozen=True)
class Arrangement:
    """T tokens before a query, in their order."""

    ids: Tensor  # (T,) long
    block: Tensor  # (T,) long, rising; PREFIX, then 1, 2, …
    first_original: int  # the block of d_1; those of d_2 … d_K follow
    window: int  # blocks that a token sees, its own included, beside the prefix
    dropped: bool  # the query does not see the replicas

    @property
    def seen(self) -> Tensor:
        """(T, T) bool: which columns each token attends to."""
        looking, at = self.block[:, None], self.block[None, :]
        near = (at == PREFIX) | (at > looking - self.window)
        return near & torch.ones_like(near).tril()

    @property
    def kept(self) -> Tensor:
        """(T,) bool: the columns that the query attends to."""
        if not self.dropped:
            return torch.ones_like(self.block, dtype=torch.bool)
        return (self.block == PREFIX) | (self.block >= self.first_original)

    @property
    def originals(self) -> Tensor:
        """(K,) long: where each of d_1 … d_K begins."""
        last = int(self.block.max())
        return torch.searchsorted(self.block, torch.arange(self.first_original, last + 1))


def arrange(layout: Layout, prefix: Tokens, demonstrations: Sequence[Tokens]) -> Arrangement:
    """`demonstrations`: K ≥ 1 blocks of any lengths, none empty."""
    count = len(demonstrations)
    replicas = [] if layout == "plain" else demonstrations[1:]
    blocks = [*replicas, *demonstrations]
    return Arrangement(
        ids=torch.tensor([*prefix, *(token for block in blocks for token in block)]),
        block=torch.tensor([PREFIX] * len(prefix) + [b for b, block in enumerate(blocks, 1) for _ in block]),
        first_original=len(replicas) + 1,
        window=count if layout == "rdsca" else len(blocks),
        dropped=layout == "rdsca",
    )
