"""Causal attention over chosen blocks: only the blocks that are read cost time.

The softmax is exact over what is read. On a CPU, the keys that a block of queries reads are gathered, and the two products
with them are as large as what is read; heads that read everything go to the dense kernel. On a GPU it is flex-attention, whose
kernel goes from listed block to listed block.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from rlcore.errors import UserError

TILE, LEAST_TILE = 64, 16  # tokens that the GPU's kernel takes at once


def count(tokens: int, block: int) -> int:
    """Blocks of so many tokens, the last of which may be shorter."""
    return -(-tokens // block)


def causal(blocks: int, device: torch.device | str | None = None) -> Tensor:
    """(blocks, blocks) bool: what can be read at all."""
    return torch.ones(blocks, blocks, dtype=torch.bool, device=device).tril()


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, block: int) -> Tensor:
    """query, key, value (heads, N, width), the query scaled; visible (heads, blocks, blocks) bool, causal and with every
    block's own → (heads, N, width). Raises UserError for a block that the GPU's kernel cannot cut into tiles."""
    if query.device.type != "cpu":
        return listed(query, key, value, visible, block)
    output = torch.empty_like(query)
    full = (visible == causal(visible.shape[1])).all(-1).all(-1)
    if full.any():
        output[full] = F.scaled_dot_product_attention(
            query[full][None], key[full][None], value[full][None], is_causal=True, scale=1.0
        )[0]
    for head in (~full).nonzero()[:, 0].tolist():
        output[head] = _gathered(query[head], key[head], value[head], visible[head], block)
    return output


def listed(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, block: int) -> Tensor:
    """`attend` by flex-attention."""
    tile = math.gcd(block, TILE)
    if tile < LEAST_TILE:
        raise UserError(f"block: {block} tokens do not suit the GPU's kernel: ask for a multiple of {LEAST_TILE}")
    mask = block_mask(visible, block, query.shape[1])
    tiles = {"BLOCK_M": tile, "BLOCK_N": tile}
    return _flex()(query[None], key[None], value[None], block_mask=mask, scale=1.0, kernel_options=tiles)[0]


def _gathered(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, block: int) -> Tensor:
    """Of one head: query, key, value (N, width); visible (blocks, blocks)."""
    keys, values = (blocked(tensor, block) for tensor in (key, value))
    later = torch.full((block, block), -torch.inf, dtype=query.dtype).triu(1)  # within a block's own, which is read last
    chosen = visible.nonzero()[:, 1].split(visible.sum(-1).tolist())
    output = torch.empty_like(query)
    for rows, read, into in zip(query.split(block), chosen, output.split(block), strict=True):
        scores = rows @ keys.index_select(0, read).flatten(0, 1).T
        scores[:, -block:] += later[: len(rows)]  # and what pads the last block
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        torch.mm(weights, values.index_select(0, read).flatten(0, 1), out=into)
    return output


def blocked(tensor: Tensor, block: int) -> Tensor:
    """(…, N, width) → (…, blocks, block, width), padded with zeros."""
    padded = F.pad(tensor, (0, 0, 0, -tensor.shape[-2] % block))
    return padded.unflatten(-2, (-1, block))


def block_mask(visible: Tensor, block: int, tokens: int) -> BlockMask:
    """For flex-attention, of (heads, blocks, blocks): only a block's own is masked within. What is left out, its lists
    alone say, by which compiled kernels go."""
    own = torch.eye(visible.shape[-1], dtype=torch.bool, device=visible.device)
    within, whole = ((visible & part)[None] for part in (own, ~own))
    return BlockMask.from_kv_blocks(
        *_in_rows(within), *_in_rows(whole), BLOCK_SIZE=block, mask_mod=_not_later, seq_lengths=(tokens, tokens)
    )


def _in_rows(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row, and which: those that are chosen first."""
    return chosen.sum(-1, dtype=torch.int32), chosen.int().argsort(dim=-1, descending=True, stable=True).int()


def _not_later(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


@functools.cache
def _flex():  # type: ignore[no-untyped-def]
    """Compiled: as it stands in Python, it makes every score, and goes by no lists."""
    return torch.compile(flex_attention, dynamic=True)
