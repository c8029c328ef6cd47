"""k-means of vectors of which only some entries count.

    J(C, a) = Σ_j ‖ √h_j ∘ m_j ∘ (w_j − c_{a_j}) ‖²        m: mask, h: importance of each entry; both 1 for plain k-means

    assign    a_j  = argmin_i  −2 (m∘h∘w)_j · c_i + (m∘h)_j · (c_i ∘ c_i)            two matrix products, in chunks of rows
    update    c_it = Σ_{j: a_j = i} (m∘h∘w)_jt / Σ_{j: a_j = i} (m∘h)_jt               a denominator for each entry; where it
                                                                                       is 0 the codeword keeps what it has
Neither step can raise J. A codeword that nothing chose is put where the error is largest, which cannot raise it either. It ends
when less than a thousandth of the rows change their codeword. (MVQ, arXiv 2412.10261, section 3; the importance is ours.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 24  # distances that exist at a time
SETTLED = 1e-3  # share of rows that change


@dataclass(frozen=True)
class Clusters:
    codewords: Tensor  # (k, d)
    assignments: Tensor  # (N,) long
    objective: tuple[float, ...]  # J after each assignment


def kmeans(
    rows: Tensor,
    codes: int,
    *,
    mask: Tensor | None = None,
    importance: Tensor | None = None,
    iterations: int = 50,
    seed: int = 0,
    start: Tensor | None = None,
    chunk: int = CHUNK,
) -> Clusters:
    """Rows (N, d), mask (N, d) bool and importance (N, d) ≥ 0 → at most `codes` codewords: as many as there are rows, where
    those are fewer. A row of which nothing counts is given the first one. Begins with the codewords `start` (codes, d), or with
    rows drawn by `seed`."""
    rows = rows.float()
    counts = torch.ones_like(rows) if mask is None else mask.float()
    if importance is not None:
        counts = counts * importance
    weighted = counts * rows
    constant = (weighted * rows).sum(1)
    codes = min(codes, len(rows))
    codewords = _drawn(rows, mask, codes, seed) if start is None else start
    plain = mask is None and importance is None
    assignments = torch.full((len(rows),), -1, dtype=torch.long, device=rows.device)
    objective: list[float] = []
    for _ in range(iterations):
        now, errors = _assign(weighted, None if plain else counts, constant, codewords, max(1, chunk // codes))
        objective.append(float(errors.sum(dtype=torch.float64)))
        changed = (now != assignments).float().mean()
        assignments = now
        if changed < SETTLED:
            break
        codewords = means(weighted, counts, codewords, assignments)
        _reseed(rows, counts, codewords, assignments, errors)
    else:
        assignments, errors = _assign(weighted, None if plain else counts, constant, codewords, max(1, chunk // codes))
        objective.append(float(errors.sum(dtype=torch.float64)))
    return Clusters(codewords, assignments, tuple(objective))


def _drawn(rows: Tensor, mask: Tensor | None, codes: int, seed: int) -> Tensor:
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:codes].to(rows.device)
    return rows[drawn] if mask is None else rows[drawn] * mask[drawn]


def _assign(
    weighted: Tensor, counts: Tensor | None, constant: Tensor, codewords: Tensor, at_once: int
) -> tuple[Tensor, Tensor]:
    """The nearest codeword of each row, and the error that is left. `counts` None: every entry counts 1."""
    squares = codewords.square()
    found, errors = [], []
    for start in range(0, len(weighted), at_once):
        part = slice(start, start + at_once)
        lengths = squares.sum(1) if counts is None else counts[part] @ squares.T
        least, which = torch.addmm(lengths, weighted[part], codewords.T, alpha=-2).min(1)
        found.append(which)
        errors.append((least + constant[part]).clamp_min(0))
    return torch.cat(found), torch.cat(errors)


def means(weighted: Tensor, counts: Tensor, codewords: Tensor, assignments: Tensor) -> Tensor:
    """The update: (k, d) from rows times their counts (N, d), the counts (N, d) and the codeword of each row (N,)."""
    sums = torch.zeros_like(codewords).index_add_(0, assignments, weighted)
    members = torch.zeros_like(codewords).index_add_(0, assignments, counts)
    return torch.where(members > 0, sums / members.clamp_min(1e-12), codewords)


def _reseed(rows: Tensor, counts: Tensor, codewords: Tensor, assignments: Tensor, errors: Tensor) -> None:
    """In place: unused codewords become the rows of the largest error, what does not count in those being 0."""
    unused = torch.bincount(assignments, minlength=len(codewords)) == 0
    worst = errors.topk(int(unused.sum()))
    worth = worst.values > 0
    codewords[unused.nonzero()[:, 0][worth]] = (rows * (counts > 0))[worst.indices[worth]]
