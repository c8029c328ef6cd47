"""TEMPO and TreePO against trees built the slow and obvious way."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlcore.batch import GradedBatch, pad
from tests.conftest import batch_of
from trainers.advantages.grpo import grpo
from trainers.advantages.tempo import tempo, temporal_differences
from trainers.advantages.treepo import treepo
from trainers.whiten import whitened

Completions = list[tuple[int, float, list[int]]]  # group, reward, tokens (of TreePO: the nodes below the root)


# -- TEMPO: the tree of the tokens ---------------------------------------------------------------------------------------


def written(completions: Completions) -> GradedBatch:
    groups, rewards, tokens = zip(*completions, strict=True)
    batch = batch_of([0.0] * len(groups), groups, [len(row) for row in tokens])
    outcome = torch.zeros(batch.tokens.shape)
    outcome[:, 0] = torch.tensor(rewards)
    return replace(batch, tokens=pad(tokens, torch.long), rewards={"answer": outcome})


def test_tempo_as_worked_in_the_reference() -> None:
    rows = [(0, 1.0, [1, 2, 3]), (0, 0.0, [1, 2, 4]), (0, 1.0, [1, 5, 6]), (0, 0.0, [7, 8, 9])]
    expected = [
        [1.1547, 0.5773, 1.7320],
        [-0.5773, -1.1547, -1.7320],
        [1.1547, 1.4434, 0.8660],
        [-1.7320, -0.8660, -0.8660],
    ]
    torch.testing.assert_close(tempo(written(rows)).policy, torch.tensor(expected), atol=1e-4, rtol=0)


def test_where_nothing_is_shared_it_is_grpo_but_for_the_first_token() -> None:
    batch = written([(0, 1.0, [1, 9, 9]), (0, 0.0, [2, 9]), (0, 0.0, [3, 9, 9]), (1, 2.0, [1, 9]), (1, 5.0, [2, 9, 9])])
    relative, got = grpo(batch).policy, tempo(batch).policy
    torch.testing.assert_close(got[:, 0], 2 * relative[:, 0])
    torch.testing.assert_close(got[:, 1:], relative[:, 1:])


def test_a_completion_that_ends_counts_for_the_prefixes_that_it_has() -> None:
    """1 is shared by a completion that ends there: worth 1/2 in both, and 1 2 is worth its own 0. What stands for padding is a
    token like others: 1 0 is not shared by a completion that ended after 1."""
    rows = [(0, 1.0, [1]), (0, 0.0, [1, 2]), (0, 0.0, [3, 3])]
    expected = torch.tensor([[1 / 6, 0], [1 / 6, -1 / 2], [-1 / 3, 0]]).double()
    torch.testing.assert_close(temporal_differences(written(rows)), expected)
    zero = written([(group, reward, [0 if token == 2 else token for token in tokens]) for group, reward, tokens in rows])
    torch.testing.assert_close(temporal_differences(zero), expected)


def test_tokens_outside_the_loss_are_part_of_the_prefix() -> None:
    """A prefix forced upon all changes nothing of the tree."""
    batch = written([(0, 1.0, [1, 2, 3]), (0, 0.0, [1, 2, 4])])
    forced = replace(batch, loss_mask=torch.tensor([[0.0, 0, 1]] * 2))
    torch.testing.assert_close(tempo(forced).policy, tempo(batch).policy)
    assert temporal_differences(forced).tolist() == [[0, 0, 0.5], [0, 0, -0.5]]


@st.composite
def forests(draw: st.DrawFn) -> Completions:
    """Up to three groups of one to five completions, of up to five tokens of a small vocabulary."""
    tokens = st.lists(st.integers(0, draw(st.integers(0, 2))), max_size=5)
    rewards = st.sampled_from([0.0, 1.0, 0.1]) | st.floats(-3, 3, width=16)
    groups = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    rows = [(100 - name, draw(rewards), draw(tokens)) for name, size in enumerate(groups) for _ in range(size)]
    return [*draw(st.permutations(rows)), (7, 0.0, [0])]  # so that there is a first token


def slow_differences(completions: Completions) -> Tensor:
    """V(y_≤t) − V(y_<t), from a dictionary of all prefixes."""
    members: dict[tuple, list[float]] = {}
    for group, reward, tokens in completions:
        for end in range(len(tokens) + 1):
            members.setdefault((group, *tokens[:end]), []).append(reward)
    value = {prefix: fmean(rewards) for prefix, rewards in members.items()}
    rows = [
        [value[group, *tokens[: t + 1]] - value[group, *tokens[:t]] for t in range(len(tokens))]
        for group, _, tokens in completions
    ]
    return pad(rows, torch.float64)


@given(forests())
@settings(max_examples=200, deadline=None)
def test_tempo_is_the_trie_of_all_prefixes(completions: Completions) -> None:
    batch = written(completions)
    differences = slow_differences(completions)
    torch.testing.assert_close(temporal_differences(batch), differences, atol=1e-6, rtol=0)
    for i, (group, reward, _) in enumerate(completions):
        rewards = torch.tensor([r for g, r, _ in completions if g == group]).double()
        spread = rewards.std().item() if len(rewards) > 1 else 0.0
        expected = (reward - rewards.mean() + differences[i]) / (spread + 1e-2)
        torch.testing.assert_close(tempo(batch, epsilon=1e-2).policy[i].double(), expected, atol=1e-4, rtol=1e-4)


# -- TreePO: the tree that was sampled -----------------------------------------------------------------------------------


def sampled(completions: Completions) -> GradedBatch:
    """With two tokens a completion, three of every other one."""
    groups, rewards, below = zip(*completions, strict=True)
    batch = batch_of(rewards, groups, [2 + i % 2 for i in range(len(groups))])
    depth = max(len(nodes) for nodes in below)
    return replace(batch, path=torch.tensor([[0, *nodes, *[-1] * (depth - len(nodes))] for nodes in below]))


@pytest.mark.parametrize(
    ("rewards", "options", "expected"),
    [
        ([1, 0, 0, 0], {}, [2 / 3, -1 / 3, -1 / 4, -1 / 4]),
        ([1, 0, 0, 0], {"by_size": False}, [5 / 8, -3 / 8, -1 / 4, -1 / 4]),
        ([1, 1, 0, 0], {}, [1 / 3, 1 / 3, -1 / 2, -1 / 2]),  # a node of equal rewards counts as 0
        ([1, 1, 0, 0], {"skip_uniform": True}, [1 / 2, 1 / 2, -1 / 2, -1 / 2]),  # or not at all
    ],
)
def test_treepo_by_hand(rewards: list[float], options: dict, expected: list[float]) -> None:
    """The first two share a node of depth 1, of the others each has its own; the nodes of depth 1 are in another group too."""
    below = [[1], [1], [2], [3]]
    rows = [*zip([0] * 4, rewards, below, strict=True), *zip([1] * 4, [5.0, 7, 7, 7], below, strict=True)]
    got = treepo(sampled(rows), whiten=False, **options)
    assert got.policy[:4, 0].tolist() == pytest.approx(expected)
    assert not got.degenerate.any()


def test_completions_that_ended_are_not_compared_with_each_other_for_it() -> None:
    """Both are −1 at depth 1."""
    got = treepo(sampled([(0, 1.0, []), (0, 0.0, []), (0, 0.0, [1]), (0, 0.0, [1])]), whiten=False)
    assert got.policy[:2, 0].tolist() == pytest.approx([3 / 4, -1 / 4])


def slow_treepo(completions: Completions, by_size: bool, skip_uniform: bool) -> list[float]:
    advantages = []
    for group, reward, nodes in completions:
        terms = []
        for depth in range(len(nodes) + 1):
            peers = [r for g, r, other in completions if g == group and other[:depth] == nodes[:depth]]
            if depth == 0 or (len(peers) > 1 and not (skip_uniform and len(set(peers)) == 1)):
                terms.append((len(peers) if by_size else 1, reward - fmean(peers)))
        advantages.append(sum(weight * a for weight, a in terms) / sum(weight for weight, _ in terms))
    return advantages


@given(forests(), st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_treepo_is_the_sum_over_the_nodes_that_a_completion_passes(
    completions: Completions, by_size: bool, skip_uniform: bool
) -> None:
    """The forest's tokens tell the branch; a node's id is that of its prefix."""
    numbers: dict[tuple, int] = {}
    rows = [
        (group, reward, [numbers.setdefault(tuple(branches[: d + 1]), len(numbers)) for d in range(len(branches))])
        for group, reward, branches in completions
    ]
    batch = sampled(rows)
    expected = torch.tensor(slow_treepo(rows, by_size, skip_uniform))[:, None].expand_as(batch.tokens)
    got = treepo(batch, by_size=by_size, skip_uniform=skip_uniform, whiten=False)
    torch.testing.assert_close(got.policy, expected, atol=1e-5, rtol=1e-5)
    white = treepo(batch, by_size=by_size, skip_uniform=skip_uniform)
    torch.testing.assert_close(white.policy, whitened(got.policy, batch.loss_mask))


def test_treepo_refuses_what_is_no_tree() -> None:
    batch = sampled([(0, 1.0, [1]), (0, 0.0, [1])])
    for root in ([0, 1], [-1, -1]):
        with pytest.raises(ValueError, match="at depth 0 the root"):
            treepo(replace(batch, path=torch.tensor(root)[:, None]))
