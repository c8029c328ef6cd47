"""Knights and knaves: everyone is a knight, who tells the truth, or a knave, who lies; who is which?

The generator behind `rlcore.data.sources.knights`. Every puzzle has exactly one solution: all 2ⁿ casts are tried.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

# ("knight", person), ("knave", person), or (connective, statement, statement)
Statement: TypeAlias = tuple
Cast = tuple[bool, ...]  # per person: is it a knight?

CONNECTIVES = ("and", "or", "if", "iff")
NAMES = (
    *("Alice", "Bob", "Carol", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Karen", "Liam", "Mia"),
    *("Noah", "Olivia", "Peter", "Quinn", "Rosa", "Sam", "Tina", "Umar", "Vera", "Walter", "Xenia", "Yusuf", "Zoe"),
)


@dataclass(frozen=True, slots=True)
class Puzzle:
    names: tuple[str, ...]
    statements: tuple[Statement, ...]  # what each of them says, in the order of the names
    cast: Cast  # the one solution

    @property
    def text(self) -> str:
        said = (
            f'{name} says: "{_sentence(statement, speaker, self.names)}."'
            for speaker, (name, statement) in enumerate(zip(self.names, self.statements, strict=True))
        )
        return (
            "On an island, everyone is either a knight, who always tells the truth, or a knave, who always lies. "
            f"You meet {', '.join(self.names[:-1])} and {self.names[-1]}.\n"
            + "\n".join(said)
            + "\nWho is a knight and who is a knave?"
        )

    @property
    def answer(self) -> str:
        return ", ".join(f"{name} is a {_role(knight)}" for name, knight in zip(self.names, self.cast, strict=True))


def puzzle(rng: random.Random, people: int) -> Puzzle:
    """Draw statements until exactly one cast fits them: about three times."""
    names = tuple(rng.sample(NAMES, people))
    while True:
        statements = tuple(_statement(rng, speaker, people) for speaker in range(people))
        solutions = solve(statements)
        if len(solutions) == 1:
            return Puzzle(names, statements, solutions[0])


def solve(statements: Sequence[Statement]) -> list[Cast]:
    """Every cast in which the knights' statements hold and the knaves' do not."""
    casts = itertools.product((True, False), repeat=len(statements))
    return [cast for cast in casts if all(holds(s, cast) == knight for s, knight in zip(statements, cast, strict=True))]


def _statement(rng: random.Random, speaker: int, people: int) -> Statement:
    """About one other person, or about any two; of oneself alone one can only say "I am a knight", which says nothing."""
    kind = rng.choice(("is", *CONNECTIVES))
    if kind == "is":
        return _role(rng.random() < 0.5), rng.choice([person for person in range(people) if person != speaker])
    left, right = rng.sample(range(people), 2)
    return kind, (_role(rng.random() < 0.5), left), (_role(rng.random() < 0.5), right)


def holds(statement: Statement, cast: Cast) -> bool:
    """Whether what is said is true in a cast."""
    match statement:
        case "knight", person:
            return cast[person]
        case "knave", person:
            return not cast[person]
        case "and", left, right:
            return holds(left, cast) and holds(right, cast)
        case "or", left, right:
            return holds(left, cast) or holds(right, cast)
        case "if", left, right:
            return not holds(left, cast) or holds(right, cast)
        case "iff", left, right:
            return holds(left, cast) == holds(right, cast)
    raise ValueError(f"not a statement: {statement!r}")


def _sentence(statement: Statement, speaker: int, names: Sequence[str]) -> str:
    kind, *parts = statement
    if kind in CONNECTIVES:
        left, right = (_sentence(part, speaker, names) for part in parts)
        joined = {"and": f"{left} and {right}", "or": f"{left} or {right}", "if": f"if {left}, then {right}"}
        return joined.get(kind, f"{left} if and only if {right}")
    return f"I am a {kind}" if parts[0] == speaker else f"{names[parts[0]]} is a {kind}"


def _role(knight: bool) -> str:
    return "knight" if knight else "knave"
