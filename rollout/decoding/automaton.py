"""The suffix automaton of texts: every place where a piece of them stands, in linear space, and the longest piece that a
growing text ends with (Blumer et al. 1985). Used by the `history` drafter.

A state is a set of pieces that end at the same places; its `link` is the state of their longest suffix that ends at more.
"""

from __future__ import annotations

from collections.abc import Iterable


class SuffixAutomaton:
    """`following[s]`: the states after s, by the token; `count[s]`: how often the pieces of s stand in the texts. State 0 is
    that of the empty piece."""

    def __init__(self) -> None:
        self.following: list[dict[int, int]] = [{}]
        self.link, self.length, self.count = [-1], [0], [0]

    def add(self, text: Iterable[int]) -> None:
        """One text more; the same one again makes no new states."""
        link, count, last = self.link, self.count, 0
        for token in text:
            last = state = self._extend(last, token)
            while state >= 0:
                count[state] += 1
                state = link[state]

    def advance(self, state: int, matched: int, token: int) -> tuple[int, int]:
        """The state and length of the longest suffix that stands in the texts, of a text that had this one (`state`,
        `matched`), after one more token."""
        while state and token not in self.following[state]:
            state = self.link[state]
            matched = self.length[state]
        return (self.following[state][token], matched + 1) if token in self.following[state] else (0, 0)

    def _extend(self, last: int, token: int) -> int:
        """The state of the text so far, of which `last` is that of all but this token."""
        if token in self.following[last]:
            return self._alone(last, token)
        new = self._state({}, 0, self.length[last] + 1, 0)
        at = last
        while at >= 0 and token not in self.following[at]:
            self.following[at][token] = new
            at = self.link[at]
        if at >= 0:
            self.link[new] = self._alone(at, token)
        return new

    def _alone(self, at: int, token: int) -> int:
        """The state of the longest piece of `at`, and the token: split off where it shared one with longer pieces."""
        shared = self.following[at][token]
        if self.length[shared] == self.length[at] + 1:
            return shared
        own = self._state(dict(self.following[shared]), self.link[shared], self.length[at] + 1, self.count[shared])
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
