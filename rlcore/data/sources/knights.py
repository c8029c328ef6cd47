"""Knights and knaves, made on the spot: endless, with one solution each, and as hard as the number of people."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from rlcore.data.knights import puzzle
from rlcore.data.splits import distinct, known_split
from rlcore.errors import UserError
from rlcore.types import Problem, seed_from

FEWEST, MOST = 2, 10


def knights(*, people: int | Sequence[int] = 3, count: int = 1000, split: str = "train", seed: int = 0) -> list[Problem]:
    """`people` is how many there are in each puzzle, or [fewest, most]."""
    known_split("knights", split)
    return distinct(_draws(_range(people), seed, split), "knights", split, count)


def _draws(people: tuple[int, int], seed: int, split: str) -> Iterator[Problem]:
    rng = random.Random(seed_from("knights", seed))
    for n in itertools.count(1):
        drawn = puzzle(rng, rng.randint(*people))
        yield Problem(f"knights/{split}/{n}", drawn.text, drawn.answer, grader="roles", meta={"people": len(drawn.names)})


def _range(people: int | Sequence[int]) -> tuple[int, int]:
    match people:
        case int(n) if FEWEST <= n <= MOST:
            return n, n
        case [int(fewest), int(most)] if FEWEST <= fewest <= most <= MOST:
            return fewest, most
    raise UserError(f"knights: people must be a number or [fewest, most] within {FEWEST} to {MOST}, not {people!r}")
