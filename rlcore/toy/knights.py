"""The toy world of knights and knaves: puzzles as in `rlcore.data.knights`, in a notation that a tiny model can learn, and
their solution by trying casts. Feeds `rlcore.data.sources.toy_knights`.

A person's role is a letter: a, b, c, d are knights; w, x, y, z are the same four as knaves. A puzzle is what everybody claims,
`a:x,b:anb?`: x is "b is a knave"; n is "and", o is "or". What is claimed of one person is true in a cast, such as ax, where
the cast has the same letter: a model need not compare roles. Exactly one cast fits a puzzle; the answer writes it in digits, 1
for a knight, here 10.

A solution tries the casts in their order, ab, ax, wb, wx. In each it judges claim by claim: what is said, part by part, with 1
where that is true and 0 where it is not, and whether the claim fits, + or -: a knight's has to be true, a knave's false. It
gives a cast up at the first claim that does not fit, and stops at the cast in which all do. The last line is `#### ANSWER`.
The *strategies* say how it is written (for `a:x,b:anb?`):

    guess       #### 10                                  the answer at once
    explained   ab:x0-⏎ax:x1+a1b0+⏎#### 10               as told above
    exhaustive  ab:x0-a1b1+⏎ax:x1+a1b0+⏎wb:x0+a0b1-⏎wx:x1-a0b0+⏎#### 10    gives nothing up: all claims in all casts
    mistaken    explained, but misjudges: gives the cast that fits up, where it comes to it, and takes one that does not
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from rlcore.data.knights import Cast, Statement, holds, solve

PEOPLE = "abcd"  # and as knights
KNAVES = "wxyz"
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
        return digits(self.cast)


def sample_puzzle(rng: random.Random, people: int) -> Puzzle:
    """Draw claims until exactly one cast fits them: about three times."""
    while True:
        claims = tuple(_draw(rng, speaker, people) for speaker in range(people))
        if len(solutions := solve(claims)) == 1:
            return Puzzle(claims, solutions[0])


def digits(cast: Cast) -> str:
    return "".join(str(int(knight)) for knight in cast)


def roles(cast: Cast) -> str:
    return "".join(_letter(person, knight) for person, knight in enumerate(cast))


def claim(said: Statement) -> str:
    match said:
        case "and" | "or" as kind, left, right:
            return f"{claim(left)}{SIGNS[kind]}{claim(right)}"
        case role, person:
            return _letter(person, role == "knight")
    raise ValueError(f"not a claim of the toy world: {said!r}")


def _letter(person: int, knight: bool) -> str:
    return (PEOPLE if knight else KNAVES)[person]


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


def _checks(puzzle: Puzzle, cast: Cast, fits: list[bool]) -> str:
    """A line: the cast, and of each claim as far as `fits` reaches its parts, judged, and whether it fits."""
    line = f"{roles(cast)}:"
    for said, fit in zip(puzzle.claims, fits, strict=False):
        parts = said[1:] if said[0] in SIGNS else (said,)
        line += "".join(f"{claim(part)}{int(holds(part, cast))}" for part in parts) + ("+" if fit else "-")
    return line


def _fits(puzzle: Puzzle, cast: Cast) -> list[bool]:
    return [holds(said, cast) == knight for said, knight in zip(puzzle.claims, cast, strict=True)]


def _tried(puzzle: Puzzle, cast: Cast) -> list[bool]:
    """Whether each claim fits, up to the first that does not."""
    fits = _fits(puzzle, cast)
    return fits[: fits.index(False) + 1] if False in fits else fits


def _explained(puzzle: Puzzle, rng: random.Random) -> list[str]:
    casts = _casts(puzzle)
    tried = casts[: casts.index(puzzle.cast) + 1]
    return [*(_checks(puzzle, cast, _tried(puzzle, cast)) for cast in tried), f"{ANSWER_MARK}{puzzle.answer}"]


def _exhaustive(puzzle: Puzzle, rng: random.Random) -> list[str]:
    lines = [_checks(puzzle, cast, _fits(puzzle, cast)) for cast in _casts(puzzle)]
    return [*lines, f"{ANSWER_MARK}{puzzle.answer}"]


def _mistaken(puzzle: Puzzle, rng: random.Random) -> list[str]:
    casts = _casts(puzzle)
    taken = rng.choice([cast for cast in casts if cast != puzzle.cast])
    lines = []
    for cast in casts[: casts.index(taken)]:
        fits = _tried(puzzle, cast)
        lines.append(_checks(puzzle, cast, [*fits[:-1], False]))
    return [*lines, _checks(puzzle, taken, [True] * len(taken)), f"{ANSWER_MARK}{digits(taken)}"]


STRATEGIES: dict[str, Callable[[Puzzle, random.Random], list[str]]] = {
    "guess": lambda puzzle, rng: [f"{ANSWER_MARK}{puzzle.answer}"],
    "explained": _explained,
    "exhaustive": _exhaustive,
    "mistaken": _mistaken,
}
