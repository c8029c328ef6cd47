"""The toy world of knights and knaves: puzzles as in `rlcore.data.knights`, in a notation that a tiny model can learn, and
their solution by trying casts. Feeds `rlcore.data.sources.toy_knights`.

A puzzle is what everybody claims, `a:b0,b:a1nb1?`. People are letters, a knight is 1, a knave 0: b0 is "b is a knave"; n is
"and", o is "or". The answer is everybody's role, here 10: a is a knight, b a knave. Exactly one cast fits a puzzle.

A solution tries the casts in their order, 11, 10, 01, 00. In each it tells claim by claim whether it fits, + or -: a knight's
has to be true, a knave's false. It gives a cast up at the first claim that does not fit, and stops at the cast in which all do.
The last line is `#### ANSWER`. The *strategies* say how it is written (for `a:b0,b:a1nb1?`):

    guess       #### 10                                  the answer at once
    search      11a-⏎10a+b+⏎#### 10                      of each claim the speaker, and whether it fits
    explained   11a0-⏎10a1+b10+⏎#### 10                  … and whether its parts are true, 1 or 0
    exhaustive  11a0-b11+⏎10a1+b10+⏎01a0+b01-⏎00a1-b00+⏎#### 10    explained, and gives nothing up: all claims in all casts
    hasty       11a-⏎10a+⏎#### 10                        a search that takes the first cast in which a's claim fits
    mistaken    explained, but misjudges: gives the cast that fits up, where it comes to it, and takes one that does not
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from rlcore.data.knights import Cast, Statement, holds, solve

PEOPLE = "abcd"
SIGNS = {"and": "n", "or": "o"}
ANSWER_MARK = "#### "


@dataclass(frozen=True, slots=True)
class Puzzle:
    claims: tuple[Statement, ...]  # what each of PEOPLE says
    cast: Cast  # the one solution

    @property
    def text(self) -> str:
        return ",".join(f"{person}:{claim(said)}" for person, said in zip(PEOPLE, self.claims, strict=False)) + "?"

    @property
    def answer(self) -> str:
        return roles(self.cast)


def sample_puzzle(rng: random.Random, people: int) -> Puzzle:
    """Draw claims until exactly one cast fits them: about three times."""
    while True:
        claims = tuple(_draw(rng, speaker, people) for speaker in range(people))
        if len(solutions := solve(claims)) == 1:
            return Puzzle(claims, solutions[0])


def roles(cast: Cast) -> str:
    return "".join(str(int(knight)) for knight in cast)


def claim(said: Statement) -> str:
    match said:
        case "and" | "or" as kind, left, right:
            return f"{claim(left)}{SIGNS[kind]}{claim(right)}"
        case role, person:
            return f"{PEOPLE[person]}{int(role == 'knight')}"
    raise ValueError(f"not a claim of the toy world: {said!r}")


def write(puzzle: Puzzle, strategy: str, rng: random.Random) -> str:
    """The solution of `puzzle` in one of STRATEGIES."""
    return "\n".join(STRATEGIES[strategy](puzzle, rng))


def _draw(rng: random.Random, speaker: int, people: int) -> Statement:
    """About another person, or about two, of whom the speaker may be one."""
    kind = rng.choice(("is", *SIGNS))
    if kind == "is":
        return _about(rng, rng.choice([person for person in range(people) if person != speaker]))
    left, right = rng.sample(range(people), 2)
    return kind, _about(rng, left), _about(rng, right)


def _about(rng: random.Random, person: int) -> Statement:
    return rng.choice(("knight", "knave")), person


def _casts(puzzle: Puzzle) -> list[Cast]:
    return list(itertools.product((True, False), repeat=len(puzzle.claims)))


def _checks(puzzle: Puzzle, cast: Cast, fits: list[bool], explain: bool) -> str:
    """A line: the cast, and of each claim as far as `fits` reaches whether it fits."""
    line = roles(cast)
    for person, said, fit in zip(PEOPLE, puzzle.claims, fits, strict=False):
        parts = said[1:] if said[0] in SIGNS else (said,)
        line += person + (roles(tuple(holds(part, cast) for part in parts)) if explain else "") + ("+" if fit else "-")
    return line


def _fits(puzzle: Puzzle, cast: Cast) -> list[bool]:
    return [holds(said, cast) == knight for said, knight in zip(puzzle.claims, cast, strict=True)]


def _tried(puzzle: Puzzle, cast: Cast) -> list[bool]:
    """Whether each claim fits, up to the first that does not."""
    fits = _fits(puzzle, cast)
    return fits[: fits.index(False) + 1] if False in fits else fits


def _search(puzzle: Puzzle, explain: bool) -> list[str]:
    casts = _casts(puzzle)
    tried = casts[: casts.index(puzzle.cast) + 1]
    return [*(_checks(puzzle, cast, _tried(puzzle, cast), explain) for cast in tried), f"{ANSWER_MARK}{puzzle.answer}"]


def _exhaustive(puzzle: Puzzle, rng: random.Random) -> list[str]:
    lines = [_checks(puzzle, cast, _fits(puzzle, cast), explain=True) for cast in _casts(puzzle)]
    return [*lines, f"{ANSWER_MARK}{puzzle.answer}"]


def _hasty(puzzle: Puzzle, rng: random.Random) -> list[str]:
    lines = []
    for cast in _casts(puzzle):
        fits = _tried(puzzle, cast)[:1]
        lines.append(_checks(puzzle, cast, fits, explain=False))
        if fits == [True]:
            return [*lines, f"{ANSWER_MARK}{roles(cast)}"]
    raise AssertionError(f"no cast fits what a claims: {puzzle.text}")  # one fits what all claim


def _mistaken(puzzle: Puzzle, rng: random.Random) -> list[str]:
    casts = _casts(puzzle)
    taken = rng.choice([cast for cast in casts if cast != puzzle.cast])
    lines = []
    for cast in casts[: casts.index(taken)]:
        fits = _tried(puzzle, cast)
        lines.append(_checks(puzzle, cast, [*fits[:-1], False], explain=True))
    return [*lines, _checks(puzzle, taken, [True] * len(taken), explain=True), f"{ANSWER_MARK}{roles(taken)}"]


STRATEGIES: dict[str, Callable[[Puzzle, random.Random], list[str]]] = {
    "guess": lambda puzzle, rng: [f"{ANSWER_MARK}{puzzle.answer}"],
    "search": lambda puzzle, rng: _search(puzzle, explain=False),
    "explained": lambda puzzle, rng: _search(puzzle, explain=True),
    "exhaustive": _exhaustive,
    "hasty": _hasty,
    "mistaken": _mistaken,
}
