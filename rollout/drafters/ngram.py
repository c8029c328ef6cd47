"""Prompt lookup: what came after the same n-gram before (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding; also LLMA,
arXiv 2304.04487). The last n tokens of a row are looked up in its own prompt and completion, for n = most … least, and the
latest place where they stand is continued. It costs no model, and pays where a solution repeats what it was told.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import PositiveInt
from torch import Tensor

from rlcore.errors import UserError
from rlcore.protocols import Tokens
from rollout.decoding.drafter import Drafter, Row
from rollout.decoding.tree import Tree


class Ngram(Drafter):
    """Drafts a chain of `depth` tokens after an n-gram of `least` to `most` tokens. Raises UserError where `least` is more."""

    def __init__(self, *, depth: PositiveInt = 8, least: PositiveInt = 1, most: PositiveInt = 3) -> None:
        if least > most:
            raise UserError(f"'ngram': least {least} is more than most {most}")
        self.depth, self.sizes = depth, range(most, least - 1, -1)
        self._places: dict[Row, Places] = {}

    def begin(self, rows: Sequence[Row], hidden: Sequence[Tensor]) -> None:
        self._places |= {row: Places(self.sizes) for row in rows}

    def propose(self, rows: Sequence[Row]) -> list[Tree]:
        return [self._draft(row) for row in rows]

    def forget(self, row: Row) -> None:
        del self._places[row]

    def _draft(self, row: Row) -> Tree:
        ids = row.ids
        place = self._places[row].latest(ids)
        depth = min(self.depth, row.room)
        return Tree.chain([ids[-1], *(ids[place : place + depth] if place else ())])


class Places:
    """Where each n-gram of a growing sequence stood last, with something after it."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self._after: dict[tuple[int, ...], int] = {}
        self._known = 1  # n-grams that end before this place are known

    def latest(self, ids: Tokens) -> int | None:
        """The place after the longest n-gram that the sequence ends with, where it stood before."""
        for end in range(self._known, len(ids)):
            self._after |= {tuple(ids[end - n : end]): end for n in self.sizes if n <= end}
        self._known = len(ids)
        ends = (tuple(ids[-n:]) for n in self.sizes if n <= len(ids))
        return next((self._after[gram] for gram in ends if gram in self._after), None)
