"""What was said before to the same prompt: in RL every prompt comes back, and much of what the policy says of it does too
(SuffixDecoding, arXiv 2411.04975; a tree for each problem over the latest rollouts: DAS, arXiv 2511.13841).

The earlier completions of a prompt are in a suffix automaton, each with a mark at its start. A row is matched by its longest
suffix that stands there, its own start included, and continued by what follows there most often:

    P(x | suffix) = trust(length of the suffix) · count(suffix · x) / count(suffix)

until the product of these falls below a threshold. What stood there once counts as certain, which is true of a policy that
says much the same each time and of long suffixes, and not of others; so the run itself tells how far to trust it: of all
guesses so far after suffixes of about that length (to the next power of two),

    trust = min(1, (those that came true + PRIOR) / (Σ count(suffix · x) / count(suffix) + PRIOR))

SuffixDecoding limits a draft to the length of its suffix instead; where a policy is sure of what it says, that cuts good
drafts.

A row that is done is history once no other row of its prompt is under way: those that are would be guessed by the shortest of
their kind. Other weights forget nothing of it: what an older policy said is as good a guess as it is like the newer one.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor

from rlcore.protocols import Tokens
from rollout.decoding.automaton import SuffixAutomaton
from rollout.decoding.drafter import Drafter, Row
from rollout.decoding.tree import Tree

START = -1
PRIOR = 2.0  # guesses that came true, before any was made


@dataclass
class _Match:
    """The longest suffix of a row's completion, as the automaton's state and its length; `read` of the row's ids are in it.
    `guesses` at those that follow: the token, its share of what followed, and the length of the suffix before it."""

    automaton: SuffixAutomaton
    state: int
    length: int
    read: int
    guesses: list[tuple[int, float, int]] = field(default_factory=list)


class History(Drafter):
    """Drafts a chain of at most `depth` tokens that are `probable` together, from the latest `completions` of the same prompt;
    of so many `prompts`, those that came last."""

    def __init__(
        self,
        *,
        depth: PositiveInt = 16,
        probable: Annotated[float, Field(gt=0, le=1)] = 0.2,
        completions: PositiveInt = 32,
        prompts: PositiveInt = 4096,
    ) -> None:
        self.depth, self.probable, self.completions, self.prompts = depth, probable, completions, prompts
        self._said: OrderedDict[tuple[int, ...], deque[array[int]]] = OrderedDict()
        self._automata: dict[tuple[int, ...], SuffixAutomaton] = {}  # of the prompts that rows are under way of
        self._under_way: Counter[tuple[int, ...]] = Counter()
        self._matches: dict[Row, _Match] = {}
        self._true: Counter[int] = Counter()  # guesses that came true, by the binary digits of the suffix's length
        self._promised: defaultdict[int, float] = defaultdict(float)  # how many should have, by what they promised

    def learn(self, prompt_ids: Tokens, token_ids: Tokens) -> None:
        """Remember a completion of a prompt."""
        prompt = tuple(prompt_ids)
        self._said.setdefault(prompt, deque(maxlen=self.completions)).append(array("i", token_ids))
        self._said.move_to_end(prompt)
        if len(self._said) > self.prompts:
            self._said.popitem(last=False)

    def begin(self, rows: Sequence[Row], hidden: Sequence[Tensor]) -> None:
        for row in rows:
            prompt = row.request.prompt_ids
            if prompt not in self._automata:
                self._automata[prompt] = SuffixAutomaton()
                for tokens in self._said.get(prompt, ()):
                    self._automata[prompt].add((START, *tokens))
            self._under_way[prompt] += 1
            automaton = self._automata[prompt]
            self._matches[row] = _Match(automaton, *automaton.advance(0, 0, START), len(prompt))

    def propose(self, rows: Sequence[Row]) -> list[Tree]:
        return [Tree.chain([row.ids[-1], *self._continued(row)]) for row in rows]

    def forget(self, row: Row) -> None:
        prompt = row.request.prompt_ids
        del self._matches[row]
        if row.finish_reason != "interrupted":  # it comes again, with this for its prefix
            self.learn(prompt, row.tokens)
        self._under_way[prompt] -= 1
        if not self._under_way[prompt]:
            del self._under_way[prompt], self._automata[prompt]  # which are large

    def _continued(self, row: Row) -> list[int]:
        match, together = self._matches[row], 1.0
        said = row.ids[match.read :]
        self._judge(match.guesses, said)
        for token in said:
            match.state, match.length = match.automaton.advance(match.state, match.length, token)
        match.read, match.guesses = len(row.ids), []
        state, length, count = match.state, match.length, match.automaton.count
        while state and len(match.guesses) < min(self.depth, row.room):
            if not (following := match.automaton.following[state]):
                break
            token, after = max(following.items(), key=lambda each: count[each[1]])
            share = count[after] / count[state]
            together *= share * self._trust(length)
            if together < self.probable:
                break
            match.guesses.append((token, share, length))
            state, length = after, length + 1
        return [token for token, _, _ in match.guesses]

    def _judge(self, guesses: Sequence[tuple[int, float, int]], said: Sequence[int]) -> None:
        """By what was said, guesses are judged up to the first that was wrong."""
        for (guess, share, length), token in zip(guesses, said, strict=False):
            self._true[length.bit_length()] += guess == token
            self._promised[length.bit_length()] += share
            if guess != token:
                break

    def _trust(self, length: int) -> float:
        size = length.bit_length()
        return min(1.0, (self._true[size] + PRIOR) / (self._promised[size] + PRIOR))
