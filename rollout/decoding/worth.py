"""Whether drafts pay, from what rounds with and without them took: so that speculation does not make a run slower.

A round over so many rows, to the next power of two, costs seconds a token:

    c = Σ seconds / Σ tokens        with drafts, and without; over the latest rounds of each kind, about `MEMORY` of them

The cheaper kind is chosen, and the dearer one tried now and then, since drafts get better and batches change: once what that
is expected to lose is at most the share `SPENT` of the time since the last try. A try that turns out cheaper is followed by
another.

The clock decides only whether drafts are read. Where they are verified by matching, the tokens are the same either way; where
they were drawn at random (`Drafter.draws`) they are not, and a run would not come out the same twice: those are always read.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

MEMORY = 16  # rounds after which one counts 1/e
SPENT = 0.02
HELD_UP = 3  # times the usual: what is slower than that was held up (another process, a cache that grew), and counts as this
FIRST = 4  # rounds of each kind before they are compared
STRETCH = 2  # rounds of a kind in a row: what is carried along for the next draft is there in the second one only


@dataclass
class _Kind:
    """Rounds with drafts, or those without."""

    rounds: float = 0.0
    seconds: float = 0.0
    tokens: float = 0.0
    last: tuple[float, float] = (0.0, 0.0)  # seconds and tokens

    def note(self, seconds: float, tokens: int) -> None:
        if self.rounds:
            seconds = min(seconds, HELD_UP * self.seconds / self.rounds)
        kept = 1 - 1 / MEMORY if self.rounds >= FIRST else 1.0
        self.rounds = kept * self.rounds + 1
        self.seconds, self.tokens = kept * self.seconds + seconds, kept * self.tokens + tokens
        self.last = seconds, tokens

    @property
    def cost(self) -> float:
        return self.seconds / self.tokens

    def loses(self, cost: float) -> float:
        """Seconds, of another such round, against that cost of a token: as usual, or as the last one if that did better."""
        seconds, tokens = self.last
        return min((self.seconds - cost * self.tokens) / self.rounds, seconds - cost * tokens)


@dataclass
class _Size:
    """Rounds over about so many rows."""

    without: _Kind = field(default_factory=_Kind)
    within: _Kind = field(default_factory=_Kind)
    waited: float = 0.0  # seconds since the dearer kind was tried

    def drafts(self) -> bool:
        if min(self.without.rounds, self.within.rounds) < FIRST:
            return self.within.rounds <= self.without.rounds
        cheaper, dearer = sorted((self.without, self.within), key=lambda kind: kind.cost)
        trying = STRETCH * dearer.loses(cheaper.cost) <= SPENT * self.waited
        return (dearer if trying else cheaper) is self.within

    def note(self, drafted: bool, seconds: float, tokens: int) -> None:
        kind, other = (self.within, self.without) if drafted else (self.without, self.within)
        kind.note(seconds, tokens)
        dearer = bool(other.rounds) and kind.cost > other.cost
        self.waited = 0.0 if dearer else self.waited + seconds


class Worth:
    """Of one decoder's drafts."""

    def __init__(self) -> None:
        self._sizes: defaultdict[int, _Size] = defaultdict(_Size)
        self._drafts, self._left = False, 0  # what was chosen, and for how many rounds more

    def drafts(self, rows: int) -> bool:
        """Whether a round of so many rows is to have drafts. To be asked once a round."""
        if not self._left:
            self._drafts, self._left = self._sizes[rows.bit_length()].drafts(), STRETCH
        self._left -= 1
        return self._drafts

    def note(self, rows: int, drafted: bool, seconds: float, tokens: int) -> None:
        """What a round took, and brought."""
        self._sizes[rows.bit_length()].note(drafted, seconds, tokens)
