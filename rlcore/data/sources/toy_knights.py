"""The toy world's puzzles of knights and knaves (`rlcore.toy.knights`), with solutions in a chosen mix of strategies."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from rlcore.data.splits import known_split, split_of
from rlcore.errors import UserError, nearest
from rlcore.toy import knights
from rlcore.types import Problem, seed_from


def toy_knights(
    *,
    split: str = "train",
    count: int = 10_000,
    people: Sequence[int] = (2, 4),
    strategies: Mapping[str, float] | None = None,
    seed: int = 0,
) -> list[Problem]:
    """`count` puzzles; `people` is the fewest and the most in one. With `strategies` (name → share) each problem carries
    `meta["solution"]`, written in a strategy drawn by share, for supervised warm starts. There are some hundred puzzles of two
    people: they come again and again."""
    shares = dict(strategies or {})
    for name in shares:
        if name not in knights.STRATEGIES:
            raise UserError(f"toy_knights: no strategy {name!r}{nearest(name, list(knights.STRATEGIES))}")
    known_split("toy_knights", split)
    fewest, most = people
    if not 2 <= fewest <= most <= len(knights.PEOPLE):
        raise UserError(f"toy_knights: people {list(people)} is not [fewest, most] within 2 to {len(knights.PEOPLE)}")
    rng = random.Random(seed_from("toy_knights", split, seed))
    problems: list[Problem] = []
    while len(problems) < count:
        drawn = knights.sample_puzzle(rng, rng.randint(fewest, most))
        if split_of(drawn.text) == split:
            meta: dict[str, object] = {"people": len(drawn.claims)}
            if shares:
                strategy = rng.choices(list(shares), weights=list(shares.values()))[0]
                meta |= {"strategy": strategy, "solution": knights.write(drawn, strategy, rng)}
            problems.append(
                Problem(f"toy_knights/{split}/{len(problems)}", drawn.text, drawn.answer, grader="exact", meta=meta)
            )
    return problems
