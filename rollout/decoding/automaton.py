"""The suffix automaton of a sequence: every place where a piece of it stands, in linear space, and the longest piece that a
growing text ends with (Blumer et al. 1985). Used by the `history` drafter.

A state is a set of pieces that end at the same places; its `link` is the state of their longest suffix that ends at more.
"""

from __future__ import annotations

from collections.abc import Sequence


class SuffixAutomaton:
    """`following[s]`: the states after s, by the token; `count[s]`: how often the pieces of s stand in the sequence. State 0
    is that of the empty piece."""

    def __init__(self, sequence: Sequence[int]) -> None:
        self.following: list[dict[int, int]] = [{}]
        self.link, self.length, self.count = [-1], [0], [len(sequence)]
        last = 0
        for token in sequence:
            last = self._extend(last, token)
        for state in sorted(range(1, len(self.length)), key=self.length.__getitem__, reverse=True):
            if self.link[state] > 0:
                self.count[self.link[state]] += self.count[state]

    def advance(self, state: int, matched: int, token: int) -> tuple[int, int]:
        """The state and length of the longest suffix that stands in the sequence, of a text that had this one (`state`,
        `matched`), after one more token."""
        while state and token not in self.following[state]:
            state = self.link[state]
            matched = self.length[state]
        return (self.following[state][token], matched + 1) if token in self.following[state] else (0, 0)

    def _extend(self, last: int, token: int) -> int:
        """Add a token after state `last`, which is that of the whole sequence so far."""
        new = self._state({}, 0, self.length[last] + 1, 1)
        at = last
        while at >= 0 and token not in self.following[at]:
            self.following[at][token] = new
            at = self.link[at]
        if at >= 0:
            self.link[new] = self._split(at, token)
        return new

    def _split(self, at: int, token: int) -> int:
        """The state of the longest piece of `at`, and the token: of its own where it shared one with longer pieces."""
        shared = self.following[at][token]
        if self.length[shared] == self.length[at] + 1:
            return shared
        own = self._state(dict(self.following[shared]), self.link[shared], self.length[at] + 1, 0)
        self.link[shared] = own
        while at >= 0 and self.following[at].get(token) == shared:
            self.following[at][token] = own
            at = self.link[at]
        return own

    def _state(self, following: dict[int, int], link: int, length: int, count: int) -> int:
        self.following.append(following)
        self.link.append(link)
        self.length.append(length)
        self.count.append(count)
        return len(self.length) - 1
