"""The verifier alone. Its exactness is shown by enumeration: over every ordered draft that q can give, and over grids of the
two random numbers, the tokens are distributed as p to the grids' width. Drafts that are really drawn: `test_distribution`."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from rlcore.types import Sampling
from rollout.decoding.tree import Tree
from rollout.decoding.verify import rejection, verify
from rollout.sampling import SamplingRows, sample

CPU = torch.device("cpu")
V, U = 160, 32  # points of the grids
v, u = ((torch.arange(n) + 0.5) / n for n in (V, U))
V_GRID, U_GRID = v.repeat_interleave(U), u.repeat(V)


def drawn_in_turn(q: torch.Tensor, draft: tuple[int, ...]) -> float:
    """The probability of this ordered draft: one after the other, without replacement."""
    probability, left = 1.0, 1.0
    for token in draft:
        probability *= float(q[token]) / left
        left -= float(q[token])
    return probability


@pytest.mark.parametrize("children", [1, 2, 3])
@pytest.mark.parametrize("case", ["wrong", "right", "disjoint", "one-sided"])
def test_rejection_leaves_the_distribution_as_it_is(children: int, case: str) -> None:
    generator = torch.Generator().manual_seed(3)
    p, q = (torch.randn(4, generator=generator).mul(2).softmax(-1) for _ in range(2))
    match case:
        case "right":
            q = p
        case "disjoint":
            p, q = torch.tensor([0.0, 0, 0, 1]), torch.tensor([0.2, 0.5, 0.3, 0])
        case "one-sided":  # q holds what p does not, and the other way round
            p, q = torch.tensor([0.6, 0.4, 0, 0]), torch.tensor([0.1, 0.5, 0.3, 0.1])
    found = torch.zeros(4)
    for draft in permutations(q.nonzero()[:, 0].tolist(), children):
        grid = len(V_GRID)
        tokens = rejection(p.expand(grid, -1), q.expand(grid, -1), [draft] * grid, U_GRID, V_GRID)
        found += drawn_in_turn(q, draft) * torch.bincount(tokens, minlength=4) / grid
    torch.testing.assert_close(found, p, atol=0.01, rtol=0)
    assert (found[p == 0] == 0).all()


def test_a_draft_that_is_as_the_target_is_always_accepted() -> None:
    p = torch.tensor([[0.2, 0.5, 0.3]])
    for token in range(3):
        assert rejection(p, p, [[token]], torch.tensor([0.0]), torch.tensor([1 - 2**-22]))[0] == token


def test_rows_with_different_numbers_of_children_do_not_touch_each_other() -> None:
    generator = torch.Generator().manual_seed(4)
    p, q = (torch.rand(40, 6, generator=generator).softmax(-1) for _ in range(2))
    children = [list(range(i % 4)) for i in range(40)]
    u, v = torch.rand(2, 40, generator=generator)
    together = rejection(p, q, children, u, v)
    for i in range(40):
        assert together[i] == rejection(p[i : i + 1], q[i : i + 1], children[i : i + 1], u[i : i + 1], v[i : i + 1])[0]


def test_a_matched_walk_says_what_plain_sampling_says() -> None:
    """Node by node, with the position's own random number, whatever was drafted; the log-probs are the sampler's."""
    generator = torch.Generator().manual_seed(5)
    sampling = Sampling(temperature=0.8, top_p=0.9, min_p=0.02)
    tree = Tree([9, 0, 1, 2, 0, 1, 2, 1], [-1, 0, 0, 0, 1, 1, 2, 4])
    lengths = []
    for _ in range(300):
        logits = torch.randn(1, 8, 4, generator=generator)
        u = torch.rand(1, 4, generator=generator)
        (walk,) = verify(logits, [tree], SamplingRows.of([sampling], 4, CPU), u, torch.zeros(1, 4))
        for depth, (node, token, logprob) in enumerate(zip(walk.nodes, walk.tokens, walk.logprobs, strict=True)):
            expected = sample(logits[:, node], SamplingRows.of([sampling], 4, CPU), u[:, depth])
            assert (token, logprob) == (int(expected[0]), pytest.approx(float(expected[1])))
            if depth:
                assert tree.parents[node] == walk.nodes[depth - 1]
                assert tree.tokens[node] == walk.tokens[depth - 1]
        assert walk.tokens[-1] not in tree.children[walk.nodes[-1]]
        lengths.append(len(walk.nodes))
    assert set(lengths) == {1, 2, 3, 4}


def test_greedy_rows_follow_the_mode_even_where_a_distribution_is_given() -> None:
    logits = torch.tensor([[[0.0, 3, 1], [0, 1, 5], [2, 0, 0]]])
    tree = Tree([0, 1, 2], [-1, 0, 1], {0: torch.tensor([0.0, 1, 0]), 1: torch.tensor([0.5, 0, 0.5])})
    settings = SamplingRows.of([Sampling(temperature=0)], 3, CPU)
    (walk,) = verify(logits, [tree], settings, torch.full((1, 3), 0.99), torch.full((1, 3), 0.99))
    assert (walk.nodes, walk.tokens, walk.logprobs) == ([0, 1, 2], [1, 2, 0], [0.0, 0.0, 0.0])


def test_rejected_tokens_carry_the_targets_log_probs() -> None:
    """And not those of what was left of p when they were drawn."""
    logits = torch.tensor([[[1.0, 2, 0], [0, 0, 0]]])
    tree = Tree([0, 0], [-1, 0], {0: torch.tensor([0.99, 0.01, 0])})
    (walk,) = verify(
        logits, [tree], SamplingRows.of([Sampling()], 3, CPU), torch.tensor([[0.9, 0.5]]), torch.tensor([[0.99, 0.5]])
    )
    assert walk.nodes == [0]
    assert walk.logprobs[0] == pytest.approx(float(logits[0, 0].log_softmax(-1)[walk.tokens[0]]), abs=1e-6)
