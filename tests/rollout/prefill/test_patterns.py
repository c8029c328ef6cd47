"""What patterns choose, against the same written out token by token in loops."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from rlcore.errors import UserError
from rlcore.plugins import bind
from rollout.prefill import estimate
from rollout.prefill.blocks import causal
from rollout.prefill.clusters import Clusters
from rollout.prefill.patterns.flex_prefill import FlexPrefill
from rollout.prefill.patterns.share_prefill import SharePrefill
from rollout.prefill.patterns.vertical_slash import VerticalSlash

BLOCK, HEADS, TOKENS = 8, 6, 61
BLOCKS = 8
CONFIG = LlamaConfig(num_hidden_layers=3, num_attention_heads=HEADS, hidden_size=48)


def drawn(seed: int = 0, sharpness: float = 2.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(HEADS, TOKENS, 4) * sharpness, torch.randn(HEADS, TOKENS, 4)


def attention(query: Tensor, key: Tensor) -> Tensor:
    """(N, N), of one head."""
    return (query @ key.T).masked_fill(~causal(TOKENS), -torch.inf).softmax(-1)


def fewest(weights: list[float], mass: float) -> set[int]:
    chosen: set[int] = set()
    for index in sorted(range(len(weights)), key=lambda i: -weights[i]):
        if sum(weights[i] for i in chosen) >= mass:
            break
        chosen.add(index)
    return chosen


def lines_by_hand(query: Tensor, key: Tensor, gamma: float | None, least: int, most: int = BLOCKS) -> Tensor:
    """Of one head, as the docstrings have it; without gamma, of the least budget."""
    last = attention(query, key)[-BLOCK:]
    vertical = last.mean(0).tolist()
    slash = [
        sum(float(last[i, TOKENS - BLOCK + i - back]) for i in range(BLOCK) if TOKENS - BLOCK + i >= back) / BLOCK
        for back in range(TOKENS)
    ]

    def chosen(weights: list[float]) -> set[int]:
        number, total = 0, 0.0
        for weight in sorted(weights, reverse=True):
            total += weight
            number += total <= (gamma or 0)
        number = min(max(number // BLOCK + 1, least), most) if gamma else least
        pooled = [sum(weights[i : i + BLOCK]) for i in range(0, TOKENS, BLOCK)]
        return {0, *sorted(range(BLOCKS), key=lambda i: -pooled[i])[:number]}

    columns, diagonals = chosen(vertical), chosen(slash)
    return torch.tensor([[c <= r and (c in columns or r - c in diagonals) for c in range(BLOCKS)] for r in range(BLOCKS)])


@pytest.mark.parametrize(("gamma", "most"), [(0.5, None), (0.9, None), (0.9, 3 * BLOCK)])
def test_lines_are_those_that_weigh_most(gamma: float, most: int | None) -> None:
    pattern = VerticalSlash(block=BLOCK, min_budget=2 * BLOCK, max_budget=most, gamma=gamma)
    query, key = drawn()
    found = pattern.begin(CONFIG)(0, query, key)
    for head in range(HEADS):
        expected = lines_by_hand(query[head], key[head], gamma, 2, BLOCKS if most is None else 3)
        assert torch.equal(found[head], expected)
    assert 0.2 < found.sum() / (HEADS * causal(BLOCKS).sum()) < 0.95


def test_where_averages_can_be_trusted_blocks_of_averages_are_read() -> None:
    query, key = drawn(sharpness=0.3)
    query[:3] *= 10  # heads of which averages say little
    found = FlexPrefill(block=BLOCK, min_budget=BLOCK, gamma=0.6, query_aware=0.2).begin(CONFIG)(0, query, key)
    aware = []
    for head in range(HEADS):
        means = [part.mean(0) for part in key[head].split(BLOCK)]
        last = query[head, -BLOCK:].mean(0)
        guessed = torch.stack([last @ mean for mean in means]).softmax(0)
        seen = torch.stack([part.sum() for part in attention(query[head], key[head])[-BLOCK:].mean(0).split(BLOCK)])
        middle = (guessed + seen) / 2
        divergence = sum(float((p * (p / middle).log()).sum()) / 2 for p in (guessed, seen))
        aware.append(math.sqrt(divergence) < 0.2)
        if not aware[-1]:
            assert torch.equal(found[head], lines_by_hand(query[head], key[head], 0.6, 1))
            continue
        rows = [part.mean(0) for part in query[head].split(BLOCK)]
        weights: list[float] = []
        for r, row in enumerate(rows):
            weights += [*torch.stack([row @ mean for mean in means[: r + 1]]).softmax(0).tolist(), *([0.0] * (BLOCKS - r - 1))]
        chosen = fewest(weights, 0.6 * BLOCKS)
        expected = torch.tensor([i in chosen for i in range(BLOCKS**2)]).view(BLOCKS, BLOCKS)
        assert torch.equal(found[head], expected | lines_by_hand(query[head], key[head], None, 1))
    assert {True, False} == set(aware)


def test_the_average_of_a_block_is_that_of_the_whole_attention() -> None:
    query, key = drawn()
    found = estimate.block_averages(query, key, BLOCK)
    for head in range(HEADS):
        whole = attention(query[head], key[head])
        expected = [[float(part.sum(1).mean()) for part in rows.split(BLOCK, 1)] for rows in whole.split(BLOCK)]
        torch.testing.assert_close(found[head], torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_the_distance_of_distributions() -> None:
    torch.manual_seed(0)
    p, q = torch.rand(2, 5).softmax(-1)
    middle = (p + q) / 2
    expected = math.sqrt(float((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2)
    assert float(estimate.distance(p, q)) == pytest.approx(expected, rel=1e-4)
    assert float(estimate.distance(p, p)) < 1e-3
    apart = torch.eye(2)
    assert float(estimate.distance(apart[0], apart[1])) == pytest.approx(math.sqrt(math.log(2)))


# -- sharing ---------------------------------------------------------------------------------------------------------------


def sharing(folder: Path, clusters: dict[str, list[tuple[int, int]]], **options: float) -> SharePrefill:
    """Averages are never trusted, lines never thought enough, and all heads are alike, unless options say otherwise."""
    Clusters(3, HEADS, clusters, [name for name in clusters if name != "alone"], seconds=1.0).write(folder)
    loose = {"query_aware": 0, "similarity": 1, "fallback": 0.999} | options
    return SharePrefill(clusters=str(folder), block=BLOCK, min_budget=BLOCK, gamma=0.7, **loose)  # type: ignore[arg-type]


def test_the_first_head_of_a_cluster_reads_everything_and_the_others_what_mattered_to_it(tmp_path: Path) -> None:
    pattern = sharing(tmp_path, {"0": [(0, 1), (0, 4), (2, 0)], "alone": [(0, 2)], "1": [(2, 5), (2, 3)]})
    (query, key), (later, further) = drawn(0), drawn(1)
    choose = pattern.begin(CONFIG)
    first, last = choose(0, query, key), choose(2, later, further)

    def of_pivot(query: Tensor, key: Tensor) -> Tensor:
        averages = estimate.block_averages(query[None], key[None], BLOCK)[0]
        rows = [fewest(row, 0.7) for row in averages.tolist()]
        return torch.tensor([[c in rows[r] and c <= r for c in range(BLOCKS)] for r in range(BLOCKS)])

    assert torch.equal(first[1], causal(BLOCKS))
    assert torch.equal(first[4], of_pivot(query[1], key[1]) | lines_by_hand(query[4], key[4], None, 1))
    assert torch.equal(last[0], of_pivot(query[1], key[1]) | lines_by_hand(later[0], further[0], None, 1))
    assert torch.equal(last[3], causal(BLOCKS))
    assert torch.equal(last[5], of_pivot(later[3], further[3]) | lines_by_hand(later[5], further[5], None, 1))
    for head in (0, 2, 3, 5):  # in no shared cluster
        assert torch.equal(first[head], lines_by_hand(query[head], key[head], 0.7, 1))
    again = pattern.begin(CONFIG)(2, later, further)
    assert torch.equal(again[0], causal(BLOCKS)), "another sequence begins without pivots"


@pytest.mark.parametrize("strict", [{"similarity": 0}, {"fallback": 0.001}, {"query_aware": 1}])
def test_what_is_not_shared(tmp_path: Path, strict: dict[str, float]) -> None:
    """Heads that are unlike the pivot, pivots that lines do for, and heads whose averages can be trusted."""
    query, key = drawn()
    pattern = sharing(tmp_path, {"0": [(0, head) for head in range(HEADS)]}, **strict)
    found = pattern.begin(CONFIG)(0, query, key)
    flexible = FlexPrefill(block=BLOCK, min_budget=BLOCK, gamma=0.7, query_aware=strict.get("query_aware", 0))
    expected = flexible.begin(CONFIG)(0, query, key)
    assert torch.equal(found[1:], expected[1:])
    assert torch.equal(found[0], expected[0] if "query_aware" in strict else causal(BLOCKS))


@pytest.mark.parametrize("name", ["vertical_slash", "flex_prefill", "share_prefill"])
def test_every_block_reads_its_own_and_none_that_is_later(tmp_path: Path, name: str) -> None:
    if name == "share_prefill":
        pattern = sharing(tmp_path, {"0": [(layer, head) for layer in range(3) for head in range(HEADS)]}, query_aware=0.2)
    else:
        pattern = bind("rollout.prefill.patterns", name, {"block": BLOCK, "min_budget": 1, "gamma": 0.1})()
    choose = pattern.begin(CONFIG)
    for layer in range(3):
        found = choose(layer, *drawn(layer, sharpness=0.5 + layer))
        assert found.diagonal(dim1=1, dim2=2).all()
        assert not (found & ~causal(BLOCKS)).any()


def test_what_cannot_be_a_pattern_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_budget 8 is below min_budget 16"):
        VerticalSlash(min_budget=16, max_budget=8)
    with pytest.raises(UserError, match=r"there are no clusters in .*: make them with rlcore decode cluster"):
        SharePrefill(clusters=str(tmp_path / "none"))
    (tmp_path / "clusters.json").write_text('{"layers": 2}')
    with pytest.raises(UserError, match="holds no clusters of heads"):
        SharePrefill(clusters=str(tmp_path))
    pattern = sharing(tmp_path, {"0": [(0, 0)]})
    with pytest.raises(UserError, match="of a model of 3 layers with 6 heads, and this one has 2 with 6"):
        pattern.begin(LlamaConfig(num_hidden_layers=2, num_attention_heads=HEADS, hidden_size=48))
    with pytest.raises(UserError, match="gamma"):
        bind("rollout.prefill.patterns", "vertical_slash", {"gamma": 1.5})
