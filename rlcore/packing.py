"""Prepacking (Zhao et al. 2024, arXiv 2404.09529): sequences side by side in rows that are as long as the longest of them,
instead of each in a row of its own, padded. Positions begin anew with each, and no token sees another sequence.

A batch of lengths l_1 … l_n costs a model n · max(l) tokens where it is padded, and about Σ l packed; attention is over rows of
max(l) tokens in both cases. Sequences are taken longest first, each into the first row that has room (first-fit decreasing: at
most 11/9 of the fewest rows, and one more). Sequences of one length stay in rows of their own: packing is never worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcore.batch import pad


@dataclass(frozen=True)
class Packed:
    """Sequences in R rows of C tokens, and where each of them stands."""

    ids: Tensor  # (R, C) long; 0 where nothing stands
    positions: Tensor  # (R, C) long; of each token in its sequence
    sequence: Tensor  # (R, C) long; of each token; -1 where nothing stands
    row: Tensor  # (n,) long; of each sequence
    start: Tensor  # (n,) long; its first column
    length: Tensor  # (n,) long

    @property
    def mask(self) -> Tensor:
        """(R, 1, C, C) bool: which columns each token sees. What stands in no sequence sees its like: nothing is NaN."""
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        causal = columns[None, :] <= columns[:, None]
        if len(self.row) == len(self.ids):  # no row has two sequences, and what follows one is seen by none of its tokens
            return causal.expand(len(self.ids), 1, -1, -1)
        return (causal & (self.sequence[:, :, None] == self.sequence[:, None, :]))[:, None]


def pack(sequences: Sequence[Sequence[int]], device: torch.device) -> Packed:
    """`sequences` may be empty."""
    rows = first_fit([len(ids) for ids in sequences])
    place = {i: (r, sum(len(sequences[k]) for k in row[:at])) for r, row in enumerate(rows) for at, i in enumerate(row)}
    row, start = zip(*(place[i] for i in range(len(sequences))), strict=True)
    return Packed(
        ids=pad([[token for i in each for token in sequences[i]] for each in rows], torch.long).to(device),
        positions=pad([[t for i in each for t in range(len(sequences[i]))] for each in rows], torch.long).to(device),
        sequence=pad([[i for i in each for _ in sequences[i]] for each in rows], torch.long, -1).to(device),
        row=torch.tensor(row, device=device),
        start=torch.tensor(start, device=device),
        length=torch.tensor([len(ids) for ids in sequences], device=device),
    )


def distinct(sequences: Sequence[Sequence[int]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The different ones of them, in the order in which they first come, and which of these each is."""
    number = {ids: i for i, ids in enumerate(dict.fromkeys(map(tuple, sequences)))}
    return list(number), [number[tuple(ids)] for ids in sequences]


def first_fit(lengths: Sequence[int]) -> list[list[int]]:
    """Rows of indices, none longer than the longest of them."""
    capacity = max(lengths, default=0)
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = next((r for r, left in enumerate(room) if left >= lengths[i]), len(rows))
        if at == len(rows):
            rows.append([])
            room.append(capacity)
        rows[at].append(i)
        room[at] -= lengths[i]
    return rows
