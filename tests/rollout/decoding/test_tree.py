"""A draft is a tree, or is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rollout.decoding.tree import Tree


@given(st.data())
def test_depths_and_children_are_those_of_the_parents(data: st.DataObject) -> None:
    nodes = data.draw(st.integers(1, 12))
    parents = [-1, *(data.draw(st.integers(0, i - 1)) for i in range(1, nodes))]
    tree = Tree(list(range(100, 100 + nodes)), parents)
    for node, parent in enumerate(parents):
        assert tree.depths[node] == (0 if node == 0 else tree.depths[parent] + 1)
        assert list(tree.children[node].values()) == [i for i in range(nodes) if parents[i] == node]
        assert all(tree.tokens[child] == token for token, child in tree.children[node].items())


@pytest.mark.parametrize(
    ("tokens", "parents", "told"),
    [
        ([], [], "are no tree"),
        ([1, 2], [-1], "are no tree"),
        ([1], [0], "are no tree"),
        ([1, 2, 3], [-1, 0, 2], "node 2 of a tree has the parent 2"),
        ([1, 2, 3], [-1, 2, 0], "node 1 of a tree has the parent 2"),
        ([1, 2, 3], [-1, 0, -1], "node 2 of a tree has the parent -1"),
        ([1, 2, 2], [-1, 0, 0], "two children with token 2"),
    ],
)
def test_what_is_no_tree_is_refused(tokens: list[int], parents: list[int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Tree(tokens, parents)


def test_a_distribution_belongs_to_a_node() -> None:
    with pytest.raises(ValueError, match=r"2 nodes has distributions for the nodes \[2\]"):
        Tree([1, 2], [-1, 0], {2: torch.ones(3) / 3})


def test_a_chain_is_a_tree() -> None:
    tree = Tree.chain([5, 6, 5])
    assert list(tree.parents) == [-1, 0, 1]
    assert tree.depths == [0, 1, 2]


def test_chances_are_of_every_node() -> None:
    with pytest.raises(ValueError, match="2 nodes has the chances of 1"):
        Tree([1, 2], [-1, 0], chances=[1.0])


@pytest.mark.parametrize(("longest", "said"), [(0, []), (1, [2]), (2, [3, 5]), (3, [3, 5, 6])])
def test_the_best_path_is_the_one_of_which_most_is_expected(longest: int, said: list[int]) -> None:
    """The likelier first token is followed by nothing that is likely."""
    tree = Tree([1, 2, 3, 4, 5, 6], [-1, 0, 0, 1, 2, 4], chances=[1, 0.5, 0.45, 0.1, 0.4, 0.3])
    assert tree.path(longest) == said


@pytest.mark.parametrize(("longest", "said"), [(1, [2]), (2, [2, 4]), (3, [3, 5, 6])])
def test_where_the_drafter_tells_no_chances_the_longest_path_is_the_best(longest: int, said: list[int]) -> None:
    assert Tree([1, 2, 3, 4, 5, 6], [-1, 0, 0, 1, 2, 4]).path(longest) == said
