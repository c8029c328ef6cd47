"""Heads that attend alike: features whose distances mean something, and clusters that are found again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rollout.prefill.clusters import Clusters, cluster, features, named


def maps(kinds: int, heads: int, blocks: int = 12, noise: float = 0.05) -> Tensor:
    """(heads, blocks, blocks) of random causal attention, head i of kind i % kinds."""
    torch.manual_seed(0)
    of_kinds = torch.randn(kinds, blocks, blocks) * 3
    scores = of_kinds[torch.arange(heads) % kinds] + noise * torch.randn(heads, blocks, blocks)
    return scores.masked_fill(torch.ones(blocks, blocks).triu(1).bool(), -torch.inf).softmax(-1)


def test_features_are_as_far_apart_as_the_rows_of_attention() -> None:
    """A root mean square of Hellinger distances."""
    first, second = averages = maps(2, 2)
    found = features(averages)
    hellinger = [
        sum((math.sqrt(p) - math.sqrt(q)) ** 2 for p, q in zip(*rows, strict=True)) / 2
        for rows in zip(first, second, strict=True)
    ]
    assert float((found[0] - found[1]).norm()) == pytest.approx(math.sqrt(sum(hellinger) / len(hellinger)), rel=1e-5)
    apart = torch.stack([torch.eye(4), torch.eye(4).roll(1, 1)])
    assert float((features(apart)[0] - features(apart)[1]).norm()) == pytest.approx(1)


def test_maps_beyond_the_size_of_features_are_pooled() -> None:
    assert features(maps(2, 3, blocks=100)).shape == (3, 64 * 64)


def test_heads_of_a_kind_are_found_again() -> None:
    found = cluster(features(maps(3, 11)), distance=0.2)
    assert [sorted(members) for members in found] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8]]
    assert len(cluster(features(maps(3, 11)), distance=1)) == 1
    assert len(cluster(features(maps(3, 11)), distance=1e-4)) == 11


def test_small_clusters_are_not_shared_and_all_is_read_back(tmp_path: Path) -> None:
    found = named([[0, 5, 7], [1, 2], [3], [4], [6]], layers=2, heads=4, least=2, seconds=1.5)
    assert found.clusters == {"0": [(0, 0), (1, 1), (1, 3)], "1": [(0, 1), (0, 2)], "2": [(0, 3)], "3": [(1, 0)], "4": [(1, 2)]}
    assert found.shared() == {(0, 0): "0", (1, 1): "0", (1, 3): "0", (0, 1): "1", (0, 2): "1"}
    found.write(tmp_path)
    for place in (tmp_path, tmp_path / "clusters.json"):
        assert Clusters.read(str(place)).shared() == found.shared()
    assert named([[0, 5, 7], [1, 2]], 2, 4, least=3, seconds=1).shared_clusters == ["0"]
