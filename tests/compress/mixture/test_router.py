from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

from compress.mixture.router import GruRouter, NaiveRouter, Round, Routing, blocks_balance, choose, load_balance, pooled, usage


def routing(probabilities: list[list[float]], chosen: list[list[int]]) -> Routing:
    """Of one row of tokens; with weights that nothing here reads."""
    p, c = torch.tensor([probabilities]), torch.tensor([chosen])
    return Routing(p, torch.ones(c.shape), c)


def test_the_gru_is_the_papers_and_starts_each_block_at_0() -> None:
    torch.manual_seed(0)
    router = GruRouter(3, 5, 4)
    x = torch.randn(7, 3)
    w, u = router.cell.weight_ih.chunk(3), router.cell.weight_hh.chunk(3)
    b, c = router.cell.bias_ih.chunk(3), router.cell.bias_hh.chunk(3)
    state, h = None, torch.zeros(7, 5)
    for _ in range(2):
        logits, state = router(x, state)
        r, z = (torch.sigmoid(x @ w[i].T + b[i] + h @ u[i].T + c[i]) for i in (0, 1))
        n = torch.tanh(x @ w[2].T + b[2] + r * (h @ u[2].T + c[2]))
        h = n + z * (h - n)
        torch.testing.assert_close(state, h)
        torch.testing.assert_close(logits, router.head(h))


def test_the_naive_router_says_the_same_in_every_round() -> None:
    router, x = NaiveRouter(3, 5, 4), torch.randn(7, 3)
    first, state = router(x, None)
    assert first.shape == (7, 4)
    assert torch.equal(router(x, state)[0], first)


def test_choosing_takes_the_top_k_of_a_softmax_with_temperature() -> None:
    logits = torch.tensor([[[0.2, 0.0, 0.4]]])
    p = [math.exp(x / 0.2) for x in (0.2, 0.0, 0.4)]
    got = choose(logits, top_k=2, tau=0.2, renormalise=True)
    assert got.chosen.tolist() == [[[2, 0]]]
    torch.testing.assert_close(got.probabilities[0, 0], torch.tensor(p) / sum(p))
    torch.testing.assert_close(got.weights[0, 0], torch.tensor([p[2], p[0]]) / (p[2] + p[0]))
    as_it_is = choose(logits, top_k=1, tau=0.2, renormalise=False)
    torch.testing.assert_close(as_it_is.weights[0, 0], torch.tensor([p[2] / sum(p)]))


def test_a_token_skips_where_all_that_it_chose_is_skip() -> None:
    assert routing([[0.1, 0.9], [0.8, 0.2]], [[1], [0]]).skips.tolist() == [[True, False]]
    assert routing([[0.1, 0.9]], [[1, 0]]).skips.tolist() == [[False]]


def test_balance_is_1_for_uniform_and_the_number_of_outcomes_for_collapsed() -> None:
    uniform = routing([[1 / 3] * 3] * 3, [[0], [1], [2]])
    assert load_balance([uniform]).item() == pytest.approx(1.0)
    assert load_balance([routing([[1.0, 0.0, 0.0]] * 3, [[0]] * 3)]).item() == pytest.approx(3.0)


def test_balance_by_hand() -> None:
    """f = (2, 1, 1)/4 and P = (0.5, 0.3, 0.2): 3 · (0.25 + 0.075 + 0.05)."""
    assert load_balance([routing([[0.6, 0.3, 0.1], [0.4, 0.3, 0.3]], [[0, 1], [0, 2]])]).item() == pytest.approx(1.125)


def test_padding_does_not_count() -> None:
    padded = routing([[0.6, 0.3, 0.1], [0.4, 0.3, 0.3], [0.0, 0.0, 1.0]], [[0, 1], [0, 2], [2, 1]])
    counted = torch.tensor([[1, 1, 0]])
    assert load_balance([padded], counted).item() == pytest.approx(1.125)
    assert usage([[Round(padded, padded)]], counted).attention[0, 0].tolist() == [1.0, 0.5, 0.5]


def test_a_block_that_gives_each_round_to_another_is_balanced_together_and_not_by_round() -> None:
    one, other = routing([[1.0, 0.0]], [[0]]), routing([[0.0, 1.0]], [[1]])
    blocks = [[Round(one, one), Round(other, other)]]
    assert blocks_balance(blocks, per_round=False).item() == pytest.approx(1.0)
    assert blocks_balance(blocks, per_round=True).item() == pytest.approx(2.0)


def test_balance_is_the_mean_over_blocks_and_kinds() -> None:
    uniform, collapsed = routing([[0.5, 0.5]] * 2, [[0], [1]]), routing([[1.0, 0.0]] * 2, [[0], [0]])
    blocks = [[Round(uniform, collapsed)], [Round(uniform, uniform)]]
    assert blocks_balance(blocks, per_round=False).item() == pytest.approx((1 + 2 + 1 + 1) / 4)


def test_usage_by_hand() -> None:
    first = routing([[0.5, 0.5], [1.0, 0.0]], [[1], [0]])
    second = routing([[0.0, 1.0], [0.0, 1.0]], [[1], [1]])
    got = usage([[Round(first, second), Round(second, first)]])
    assert got.attention.tolist() == [[[0.5, 0.5], [0.0, 1.0]]]
    assert got.feed_forward.tolist() == [[[0.0, 1.0], [0.5, 0.5]]]
    assert got.absent.tolist() == [[0.5, 1.0]]
    torch.testing.assert_close(got.attention_entropy, torch.tensor([[math.log(2) / 2, 0.0]]))
    torch.testing.assert_close(got.feed_forward_entropy, torch.tensor([[0.0, math.log(2) / 2]]))
    assert got.skipped == pytest.approx((0.5 + 1 + 1 + 0.5) / 4)


def test_skipped_is_of_all_choices() -> None:
    """With K = 2 one of two choices can be SKIP."""
    always = routing([[0.4, 0.3, 0.3]] * 2, [[0, 2], [1, 2]])
    assert usage([[Round(always, always)]]).skipped == pytest.approx(0.5)


def test_batches_of_different_lengths_are_as_one() -> None:
    first, second = [[0.6, 0.3, 0.1]], [[0.1, 0.4, 0.5], [0.2, 0.2, 0.6]]
    parts = [routing(first, [[0]]), routing(second, [[2], [2]])]
    whole = usage([[Round(*[routing(first + second, [[0], [2], [2]])] * 2)]])
    got = pooled([usage([[Round(part, part)]]) for part in parts], [1, 2])
    for field in fields(whole):
        torch.testing.assert_close(getattr(got, field.name), getattr(whole, field.name))
