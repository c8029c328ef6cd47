"""Which problems are for training and which for testing, where a source makes its own problems or has one file for both.

The problem's text decides, so that the two splits have nothing in common whatever the seeds and counts are. Used by the
sources; `rlcore.data.overlap` says when two texts are the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from rlcore.data.overlap import normalise
from rlcore.errors import UserError, nearest
from rlcore.types import Problem, seed_from

SPLITS = ("train", "test")
PATIENCE = 1000  # draws in a row that bring nothing new, after which a generator counts as exhausted


def distinct(draws: Iterable[Problem], source: str, split: str, count: int) -> list[Problem]:
    """The first `count` problems of the split among the draws, each text once. Raises UserError where there are too few."""
    if count < 1:
        raise UserError(f"{source}: count must be at least 1, not {count}")
    kept: dict[str, Problem] = {}
    barren = 0
    for problem in draws:
        text = normalise(problem.prompt)
        barren += 1
        if text not in kept and split_of(text) == split:
            kept[text] = problem
            barren = 0
        if len(kept) == count:
            return list(kept.values())
        if barren == PATIENCE:
            break
    raise UserError(
        f"{source}: only {len(kept)} distinct {split} problems can be drawn, {count} were asked for: "
        "lower `count`, or let the problems vary more"
    )


def split_of(text: str) -> str:
    """One text in five is for testing."""
    return "test" if seed_from("split", normalise(text)) % 5 == 0 else "train"


def known_split(source: str, split: str, known: tuple[str, ...] = SPLITS) -> str:
    if split not in known:
        raise UserError(f"{source!r} has no split {split!r}{nearest(split, list(known))}")
    return split
