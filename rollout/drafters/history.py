"""What was said before to the same prompt: in RL every prompt comes back, and much of what the policy says of it does too
(SuffixDecoding, arXiv 2411.04975; a tree for each problem over the latest rollouts: DAS, arXiv 2511.13841).

The earlier completions of a prompt are one sequence, each after a mark of where it starts, in a suffix automaton. A row is
matched by its longest suffix that stands there, its own start included, and continued by what follows there most often:

    P(x | suffix) = count(suffix · x) / count(suffix)

until the product of these falls below a threshold. A row that is done is history for the rows that begin after it. Other
weights forget nothing of it: what an older policy said is as good a guess as it is like the newer one.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor

from rlcore.protocols import Tokens
from rollout.decoding.automaton import SuffixAutomaton
from rollout.decoding.drafter import Drafter, Row
from rollout.decoding.tree import Tree

START = -1


@dataclass
class _Match:
    """The longest suffix of a row's completion, as the automaton's state and its length; `read` of the row's ids are in it."""

    automaton: SuffixAutomaton
    state: int
    length: int
    read: int


class History(Drafter):
    """Drafts a chain of at most `depth` tokens that are `probable` together, from the latest `completions` of the same prompt;
    of so many `prompts`, those that came last."""

    def __init__(
        self,
        *,
        depth: PositiveInt = 16,
        probable: Annotated[float, Field(gt=0, le=1)] = 0.1,
        completions: PositiveInt = 32,
        prompts: PositiveInt = 4096,
    ) -> None:
        self.depth, self.probable, self.completions, self.prompts = depth, probable, completions, prompts
        self._said: OrderedDict[tuple[int, ...], deque[array[int]]] = OrderedDict()
        self._automata: dict[tuple[int, ...], SuffixAutomaton] = {}  # of prompts as they were when rows began
        self._matches: dict[Row, _Match] = {}

    def learn(self, prompt_ids: Tokens, token_ids: Tokens) -> None:
        """Remember a completion of a prompt, for the rows that begin after it."""
        prompt = tuple(prompt_ids)
        self._said.setdefault(prompt, deque(maxlen=self.completions)).append(array("i", token_ids))
        self._said.move_to_end(prompt)
        self._automata.pop(prompt, None)
        if len(self._said) > self.prompts:
            oldest, _ = self._said.popitem(last=False)
            self._automata.pop(oldest, None)

    def begin(self, rows: Sequence[Row], hidden: Sequence[Tensor]) -> None:
        for row in rows:
            automaton = self._automaton(tuple(row.request.prompt_ids))
            self._matches[row] = _Match(automaton, *automaton.advance(0, 0, START), len(row.request.prompt_ids))

    def propose(self, rows: Sequence[Row]) -> list[Tree]:
        return [Tree.chain([row.ids[-1], *self._continued(row)]) for row in rows]

    def forget(self, row: Row) -> None:
        del self._matches[row]
        if row.finish_reason != "interrupted":  # it comes again, with this for its prefix
            self.learn(row.request.prompt_ids, row.tokens)

    def _automaton(self, prompt: tuple[int, ...]) -> SuffixAutomaton:
        if prompt not in self._automata:
            said = self._said.get(prompt, ())
            self._automata[prompt] = SuffixAutomaton([token for tokens in said for token in (START, *tokens)])
        return self._automata[prompt]

    def _continued(self, row: Row) -> list[int]:
        match, together = self._matches[row], 1.0
        draft: list[int] = []
        for token in row.ids[match.read :]:
            match.state, match.length = match.automaton.advance(match.state, match.length, token)
        match.read = len(row.ids)
        state, count = match.state, match.automaton.count
        while state and len(draft) < min(self.depth, row.room):
            following = {t: s for t, s in match.automaton.following[state].items() if t != START}
            if not following:
                break
            token, after = max(following.items(), key=lambda each: count[each[1]])
            together *= count[after] / count[state]
            if together < self.probable:
                break
            draft.append(token)
            state = after
        return draft
