"""Tree attention over the slot cache: every node's logits are those of a plain forward pass over its path."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from rlcore.errors import UserError
from rollout.decoding.model import BranchedModel

Branches = tuple[list[int], list[int]]
token = st.integers(0, 23)


@st.composite
def trees(draw: st.DrawFn, most: int = 7) -> Branches:
    """Nodes with parents among those before them, or none; siblings differ."""
    tokens: list[int] = []
    parents: list[int] = []
    for i in range(draw(st.integers(1, most))):
        parent = draw(st.integers(-1, i - 1))
        among = [t for t, p in zip(tokens, parents, strict=True) if p == parent]
        tokens.append(draw(token.filter(lambda t: t not in among)))  # noqa: B023 - drawn at once
        parents.append(parent)
    return tokens, parents


def path(branches: Branches, node: int) -> list[int]:
    """Nodes from the first of a branch to `node`."""
    line = []
    while node >= 0:
        line.append(node)
        node = branches[1][node]
    return line[::-1]


@torch.inference_mode()
def assert_plain(oracle: PreTrainedModel, logits: torch.Tensor, settled: list[int], branches: Branches, first: int = 0) -> None:
    """Logits (nodes, V) from node `first` on are those of the whole path read alone."""
    for node in range(first, len(branches[0])):
        said = [branches[0][each] for each in path(branches, node)]
        alone = oracle(torch.tensor([settled + said])).logits[0, -1]
        torch.testing.assert_close(logits[node - first], alone, atol=2e-5, rtol=1e-5)


rows = st.lists(st.tuples(st.lists(token, max_size=6), trees()), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(rows, st.data())
@torch.inference_mode()
def test_logits_are_those_of_a_plain_pass_over_the_path(
    oracle: PreTrainedModel, batch: list[tuple[list[int], Branches]], data: st.DataObject
) -> None:
    """Trees of different sizes over rows of different lengths (none as well), in two readings; after a path was kept, which is
    a different one in each row, another tree; after a row has left, one more."""
    model = BranchedModel(deepcopy(oracle))
    model.enter([context for context, _ in batch])
    cuts = [data.draw(st.integers(0, len(tree[0]))) for _, tree in batch]
    for begin, end in ((lambda c: 0, lambda c: c), (lambda c: c, lambda c: None)):
        part = [(tree[0][begin(c) : end(c)], tree[1][begin(c) : end(c)]) for c, (_, tree) in zip(cuts, batch, strict=True)]
        logits = model.read(part).logits
        for row, (context, tree) in enumerate(batch):
            read = tree[0][: end(cuts[row])], tree[1][: end(cuts[row])]
            assert_plain(oracle, logits[row], context, read, begin(cuts[row]))

    kept = [path(tree, data.draw(st.integers(-1, len(tree[0]) - 1))) for _, tree in batch]
    model.keep(kept)
    settled = [context + [tree[0][node] for node in line] for (context, tree), line in zip(batch, kept, strict=True)]
    assert model.lengths == list(map(len, settled))
    for _ in range(2):
        again = [data.draw(trees()) for _ in settled]
        logits = model.read(again).logits
        for row, tree in enumerate(again):
            assert_plain(oracle, logits[row], settled[row], tree)
        model.keep([[] for _ in settled])
        if len(settled) == 1:
            return
        leaving = data.draw(st.integers(0, len(settled) - 1))
        model.leave(leaving)
        settled[leaving] = settled[-1]
        settled.pop()


@settings(max_examples=30, deadline=None)
@given(rows)
@torch.inference_mode()
def test_a_node_sees_what_is_settled_its_ancestors_and_itself(
    oracle: PreTrainedModel, batch: list[tuple[list[int], Branches]]
) -> None:
    model = BranchedModel(deepcopy(oracle))
    model.enter([context for context, _ in batch])
    model.read([tree for _, tree in batch])
    width = max(len(context) + len(tree[0]) for context, tree in batch)
    seen = model._seen(model._lines, torch.tensor(model.lengths), width)
    for row, (context, tree) in enumerate(batch):
        for node in range(len(tree[0])):
            expected = {*range(len(context)), *(len(context) + each for each in path(tree, node))}
            assert set(seen[row, node].nonzero()[:, 0].tolist()) == expected


@torch.inference_mode()
def test_hidden_states_are_those_that_the_head_reads(oracle: PreTrainedModel) -> None:
    model = BranchedModel(deepcopy(oracle))
    first, second, same = model.enter([[1, 2, 3], [4], [1, 2, 3]])
    expected = oracle(torch.tensor([[1, 2, 3, 7, 8]]), output_hidden_states=True).hidden_states[-1][0]
    torch.testing.assert_close(first, expected[:3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(same, first)
    assert second.shape == (1, 32)
    hidden = model.read([([7, 9, 8], [-1, -1, 0]), ([5], [-1]), ([7], [-1])]).hidden
    torch.testing.assert_close(hidden[0, [0, 2]], expected[3:], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_rows_enter_beside_others_that_are_under_way(oracle: PreTrainedModel) -> None:
    model = BranchedModel(deepcopy(oracle))
    model.enter([[1, 2, 3]])
    model.read([([4, 5], [-1, 0])])
    model.keep([[0, 1]])
    model.enter([[6] * 20, []])
    tree = ([7, 8, 9], [-1, 0, 0])
    logits = model.read([tree, tree, tree]).logits
    for row, settled in enumerate(([1, 2, 3, 4, 5], [6] * 20, [])):
        assert_plain(oracle, logits[row], settled, tree)


@torch.inference_mode()
def test_a_row_that_moves_takes_what_is_open_in_it_along(oracle: PreTrainedModel) -> None:
    model = BranchedModel(deepcopy(oracle))
    model.enter([[1, 2, 3], [4], [5, 6]])
    model.read([([7], [-1]), ([7], [-1]), ([8, 9, 7], [-1, -1, 1])])
    model.leave(0)
    assert [model.follow(row, [9, 7]) for row in range(2)] == [[1, 2], []]
    model.keep([[1, 2], [0]])
    logits = model.read([([10], [-1]), ([10], [-1])]).logits
    for row, settled in enumerate(([5, 6, 9, 7], [4, 7])):
        assert_plain(oracle, logits[row], settled, ([10], [-1]))


@torch.inference_mode()
def test_what_was_said_before_is_followed(oracle: PreTrainedModel) -> None:
    model = BranchedModel(deepcopy(oracle))
    model.enter([[1]])
    model.read([([4, 5, 4, 6], [-1, 0, 0, 1])])
    assert model.follow(0, [4, 5, 6, 7]) == [0, 1, 3]
    assert model.follow(0, [4, 4]) == [0, 2]
    assert model.follow(0, [5]) == []


def test_models_that_it_cannot_read_are_refused(oracle: PreTrainedModel) -> None:
    rescaled = deepcopy(oracle)
    rescaled.config.final_logit_softcapping = 30.0
    with pytest.raises(UserError, match="final_logit_softcapping"):
        BranchedModel(rescaled)
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    with pytest.raises(UserError, match="sliding-window"):
        BranchedModel(MistralForCausalLM(MistralConfig(vocab_size=8, sliding_window=4, **sizes)))
