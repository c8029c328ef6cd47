"""Attention over chosen blocks against dense attention under the same mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rlcore.errors import UserError
from rollout.prefill import blocks

BLOCK = 16


def drawn(tokens: int, heads: int = 5, width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    return tuple(torch.randn(heads, tokens, width) for _ in range(3))  # type: ignore[return-value]


def some(heads: int, count: int, share: float = 0.4, seed: int = 0) -> Tensor:
    """Random causal blocks, a block's own always; the second head reads everything."""
    torch.manual_seed(seed)
    visible = ((torch.rand(heads, count, count) < share) | torch.eye(count, dtype=torch.bool)).tril()
    visible[1] = blocks.causal(count)
    return visible


def masked(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Dense attention, by a mask token by token."""
    tokens = query.shape[1]
    mask = visible.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)[:, :tokens, :tokens].tril()
    return F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask[None], scale=1.0)[0]


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 96, 123])
def test_it_is_dense_attention_under_the_mask(tokens: int) -> None:
    """The last block may be shorter."""
    inputs, visible = drawn(tokens), some(5, blocks.count(tokens, BLOCK))
    torch.testing.assert_close(blocks.attend(*inputs, visible, BLOCK), masked(*inputs, visible), atol=2e-6, rtol=1e-5)


def test_half_precision_sums_in_single() -> None:
    inputs, visible = drawn(100), some(5, 7)
    half = [tensor.bfloat16() for tensor in inputs]
    found = blocks.attend(*half, visible, BLOCK)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), masked(*(tensor.float() for tensor in half), visible), atol=0.03, rtol=0.02)


def test_what_is_not_chosen_is_not_read() -> None:
    """Values that nobody may read are not numbers. The second head goes to the dense kernel, which weighs them with 0."""
    (query, key, value), visible = drawn(80), some(5, 5)
    for head in (0, 2, 3, 4):
        for row in range(5):
            hidden = value.clone()
            unread = ~visible[head, row].repeat_interleave(BLOCK)
            hidden[:, unread] = torch.nan
            found = blocks.attend(query, key, hidden, visible, BLOCK)
            assert found[head, row * BLOCK : (row + 1) * BLOCK].isfinite().all()


def test_the_work_is_that_of_the_blocks_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are made for no other block."""
    made = 0
    softmax = Tensor.softmax

    def counted(scores: Tensor, *args: object, **kwargs: object) -> Tensor:
        nonlocal made
        made += scores.numel()
        return softmax(scores, *args, **kwargs)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(Tensor, "softmax", counted)
    visible = some(5, 8, share=0.2)
    blocks.attend(*drawn(8 * BLOCK), visible, BLOCK)
    visible[1] = False  # which went to the dense kernel
    assert made == int(visible.sum()) * BLOCK * BLOCK


def test_flex_attention_is_told_the_same_blocks() -> None:
    visible = some(5, 8)
    mask = blocks.block_mask(visible, BLOCK, 8 * BLOCK - 3)
    assert torch.equal(mask.to_dense()[0].bool(), visible)
    whole = [mask.full_kv_indices[0, h, r, : mask.full_kv_num_blocks[0, h, r]].tolist() for h in range(5) for r in range(8)]
    assert all(r % 8 not in listed for r, listed in enumerate(whole))  # its own block, which is masked within


@pytest.mark.slow
def test_flex_attention_compiled_gives_the_same() -> None:
    """Its CPU kernel, which takes the same lists as those of GPUs."""
    for tokens in (128, 123, 200):
        inputs, visible = drawn(tokens, width=16), some(5, blocks.count(tokens, BLOCK))
        found = blocks.listed(*inputs, visible, BLOCK)
        torch.testing.assert_close(found, blocks.attend(*inputs, visible, BLOCK), atol=5e-6, rtol=1e-5)


def test_blocks_that_make_no_tiles_are_refused_on_a_gpu() -> None:
    with pytest.raises(UserError, match="24 tokens do not suit the GPU's kernel: ask for a multiple of 16"):
        blocks.listed(*drawn(48), some(5, 2), 24)
