"""The toy world's chain problems (`rlcore.toy.world`) as a data source, with solutions in a chosen mix of strategies."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from rlcore.data.splits import known_split
from rlcore.errors import UserError, nearest
from rlcore.toy import world
from rlcore.types import Problem, seed_from

# One chain in ten belongs to the test split, by a hash of its text: no split ever holds another's problem. It is not the rule
# of `rlcore.data.splits`, because that would be another training set, and so other toys.
HELD_OUT = 10


def chain(
    *,
    split: str = "train",
    count: int = 10_000,
    difficulty: Sequence[int] = (2, 5),
    strategies: Mapping[str, float] | None = None,
    seed: int = 0,
) -> list[Problem]:
    """`count` chains; `difficulty` is the lowest and highest number of operations. With `strategies` (name → share) each
    problem carries `meta["solution"]`, written in a strategy drawn by share, for supervised warm starts."""
    shares = dict(strategies or {})
    for name in shares:
        if name not in world.STRATEGIES:
            raise UserError(f"chain: no strategy {name!r}{nearest(name, list(world.STRATEGIES))}")
    known_split("chain", split)
    low, high = difficulty
    if not 1 <= low <= high:
        raise UserError(f"chain: difficulty {list(difficulty)} is not [low, high] with 1 <= low <= high")
    rng = random.Random(seed_from("chain", split, seed))
    problems: list[Problem] = []
    while len(problems) < count:
        drawn = world.sample_chain(rng, (low, high))
        if (seed_from(drawn.text) % HELD_OUT == 0) == (split == "test"):
            meta: dict[str, object] = {"difficulty": len(drawn.operations)}
            if shares:
                strategy = rng.choices(list(shares), weights=list(shares.values()))[0]
                meta |= {"strategy": strategy, "solution": world.write(drawn, strategy, rng)}
            problems.append(Problem(f"chain/{split}/{len(problems)}", drawn.text, str(drawn.answer), meta=meta))
    return problems
