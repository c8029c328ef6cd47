"""Masked k-means: what it minimises, that it never gets worse, and the edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.kmeans import Clusters, kmeans
from compress.pruning import mask_of_pattern


def pruned(rows: int = 4096, width: int = 16) -> tuple[Tensor, Tensor]:
    """Gaussian rows and the mask of the four largest of sixteen."""
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    return weight, mask_of_pattern(weight.abs(), (4, 16), "in")


def kept_error(found: Clusters, rows: Tensor, mask: Tensor) -> float:
    lost = ((found.codewords[found.assignments] - rows) * mask).square().sum()
    return float(lost / (rows * mask).square().sum())


def test_masking_is_essential_to_the_weights_that_are_kept() -> None:
    """4:16, width 16, 512 codewords, a million Gaussian weights: 0.019 was measured with the mask, 0.345 without."""
    rows, mask = pruned(65536)
    masked = kmeans(rows, 512, mask=mask, iterations=25)
    plain = kmeans(rows * mask, 512, iterations=25)
    assert kept_error(masked, rows, mask) == pytest.approx(0.019, abs=0.003)
    assert kept_error(plain, rows, mask) == pytest.approx(0.345, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["plain", "masked", "weighted"])
def test_the_objective_never_rises_and_is_what_it_says(kind: str, seed: int) -> None:
    rows, mask = pruned(2000)
    importance = torch.rand(rows.shape, generator=torch.Generator().manual_seed(seed)) + 0.1
    given = {"plain": {}, "masked": {"mask": mask}, "weighted": {"mask": mask, "importance": importance}}[kind]
    found = kmeans(rows, 64, seed=seed, iterations=15, **given)
    for before, after in zip(found.objective, found.objective[1:], strict=False):
        assert after <= before * (1 + 1e-5)
    counts = given.get("mask", torch.ones_like(rows)) * given.get("importance", torch.ones_like(rows))
    said = (counts * (rows - found.codewords[found.assignments]).square()).sum()
    assert found.objective[-1] >= float(said) * (1 - 1e-4)


def test_each_row_has_the_codeword_that_is_nearest_where_it_counts() -> None:
    rows, mask = pruned(300)
    found = kmeans(rows, 20, mask=mask, iterations=3)
    distances = (mask[:, None] * (rows[:, None] - found.codewords[None]).square()).sum(2)
    assert torch.equal(distances.argmin(1), found.assignments)


def test_codewords_are_means_over_the_weights_that_count_entry_by_entry() -> None:
    """Two rows of one codeword: where both count their mean, where one does that one; not half of it."""
    rows = torch.tensor([[1.0, 5.0], [3.0, 7.0]])
    mask = torch.tensor([[True, True], [True, False]])
    found = kmeans(rows, 1, mask=mask, iterations=5)
    assert found.codewords.tolist() == [[2.0, 5.0]]


def test_chunks_change_nothing() -> None:
    rows, mask = pruned(1000)
    whole, cut = (kmeans(rows, 32, mask=mask, iterations=8, chunk=chunk) for chunk in (1 << 24, 32 * 7))
    assert torch.equal(whole.assignments, cut.assignments)
    torch.testing.assert_close(whole.codewords, cut.codewords)


def test_distances_exist_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows there are."""
    made: list[int] = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: made.append((found := addmm(*a, **k)).numel()) or found)
    kmeans(pruned(1000)[0], 32, iterations=2, chunk=32 * 50)
    assert max(made) <= 32 * 50
    assert len(made) > 20


def test_more_codewords_than_rows_reproduce_the_rows() -> None:
    rows, _ = pruned(10)
    found = kmeans(rows, 64)
    assert len(found.codewords) == 10
    torch.testing.assert_close(found.codewords[found.assignments], rows)


def test_codewords_that_nothing_chose_go_where_the_error_is() -> None:
    """Ninety rows alike, and ten others: a codeword drawn among the ninety is of no use twice."""
    rows = torch.cat([torch.zeros(90, 4), torch.eye(4).repeat(3, 1)[:10] * 9])
    found = kmeans(rows, 5, seed=0, iterations=20)
    assert found.objective[-1] == pytest.approx(0, abs=1e-4)


def test_rows_of_zeros_and_rows_that_do_not_count_are_no_trouble() -> None:
    rows, mask = pruned(200)
    rows[:50] = 0
    mask[50:80] = False
    found = kmeans(rows, 16, mask=mask)
    assert found.codewords.isfinite().all()
    assert set(found.assignments[50:80].tolist()) == {0}
    assert kmeans(torch.zeros(20, 4), 3).objective[-1] == 0


def test_double_precision_agrees() -> None:
    """float32 sums in another order, as on a GPU, find the same clusters up to rows that lie between two."""
    rows, mask = pruned(2000)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    one, other = kmeans(rows, 16, mask=mask, iterations=4), kmeans(rows[:, order], 16, mask=mask[:, order], iterations=4)
    assert (one.assignments == other.assignments).float().mean() > 0.99
    assert other.objective[-1] == pytest.approx(one.objective[-1], rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_agrees() -> None:
    rows, mask = pruned(20000)
    here, there = kmeans(rows, 64, mask=mask), kmeans(rows.cuda(), 64, mask=mask.cuda())
    assert there.objective[-1] == pytest.approx(here.objective[-1], rel=1e-2)
