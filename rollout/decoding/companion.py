"""A small model that drafts, level by level. What its drafters share: to keep up with the rows in a key–value cache of its own,
and to read a level of all rows' drafts in one forward pass. They differ in what they let grow.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlcore.errors import UserError
from rollout.decoding.drafter import Drafter, Row
from rollout.decoding.model import BranchedModel
from rollout.decoding.tree import Tree
from rollout.sampling import SamplingRows, processed


class Shoot:
    """A draft while it grows: nodes, and the frontier of those that get children next. The draft model has read all that were
    in the frontier, under numbers of its own."""

    def __init__(self, root: int) -> None:
        self.tokens, self.parents = [root], [-1]
        self.chances = [1.0]  # of every node: the probability of its whole path
        self.frontier = [0]
        self._numbers = {0: -1}  # node → its number in the draft model; the root is settled there

    def add(self, token: int, parent: int, p: float) -> int:
        """A new node, whose token has the probability p after its parent."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.chances.append(self.chances[parent] * p)
        return len(self.tokens) - 1

    def read(self) -> tuple[list[int], list[int]]:
        """The frontier, which is about to be read, as `BranchedModel.read` takes it."""
        parents = [self._numbers[self.parents[node]] for node in self.frontier]
        for node in self.frontier:
            self._numbers[node] = len(self._numbers) - 1
        return [self.tokens[node] for node in self.frontier], parents


S = TypeVar("S", bound=Shoot)


class Companion(Drafter, Generic[S]):
    """`model` drafts; it has the target's vocabulary, and may be a compressed copy of it. It is drafted from at the rows' own
    temperature and truncation (greedy rows: at temperature 1). Raises UserError where a row does not fit into its context."""

    def __init__(self, model: PreTrainedModel, depth: int) -> None:
        self.model, self.depth = BranchedModel(model), depth
        self.rows: list[Row] = []  # in the model's order

    @abstractmethod
    def plant(self, row: Row) -> S:
        """A draft of the row's last token alone."""

    @abstractmethod
    def branch(self, row: Row, shoot: S, logprobs: Tensor, level: int) -> None:
        """Let the frontier, of which the draft model says `logprobs` (nodes, V), get its children, at depth 1 + level; those
        that are to get children themselves are the next frontier."""

    @abstractmethod
    def grown(self, row: Row, shoot: S) -> Tree:
        """The tree of a draft that is done."""

    @property
    def forwards(self) -> int:  # type: ignore[override]
        return self.model.forwards

    def begin(self, rows: Sequence[Row], hidden: Sequence[Tensor]) -> None:
        for row in rows:
            if (longest := len(row.request.prompt_ids) + row.limit) > self.model.context:
                raise UserError(
                    f"{row.request.problem_id} can have {longest} tokens; the draft model's context is {self.model.context}"
                )
        self.model.enter([row.ids[:-1] for row in rows])
        self.rows += rows

    def forget(self, row: Row) -> None:
        place = self.rows.index(row)
        self.model.leave(place)
        self.rows[place] = self.rows[-1]
        self.rows.pop()

    def propose(self, rows: Sequence[Row]) -> list[Tree]:
        logprobs: Sequence[Tensor] = self._catch_up().split(1)
        shoots = [self.plant(row) for row in self.rows]
        for level in range(self.depth):
            for row, shoot, following in zip(self.rows, shoots, logprobs, strict=True):
                if level < row.room:
                    self.branch(row, shoot, following, level)
                if level + 1 >= min(self.depth, row.room):
                    shoot.frontier = []
            if not any(shoot.frontier for shoot in shoots):
                break
            logprobs = self._read(shoots)
        trees = {row: self.grown(row, shoot) for row, shoot in zip(self.rows, shoots, strict=True)}
        return [trees[row] for row in rows]

    def _catch_up(self) -> Tensor:
        """Keep what was accepted of the last draft, and read the rest of the rows up to their last tokens, which is settled
        then. Log-probs (rows, V) of what follows them."""
        unsettled = [row.ids[length:] for row, length in zip(self.rows, self.model.lengths, strict=True)]
        paths = [self.model.follow(place, ids[:-1]) for place, ids in enumerate(unsettled)]
        self.model.keep(paths)
        tails = [ids[len(path) :] for ids, path in zip(unsettled, paths, strict=True)]
        logits, _ = self.model.read([(tail, range(-1, len(tail) - 1)) for tail in tails])
        self.model.keep([range(len(tail)) for tail in tails])
        self._settings = SamplingRows.of([row.request.sampling for row in self.rows], self.model.vocabulary, logits.device)
        ends = torch.tensor([len(tail) - 1 for tail in tails], device=logits.device)
        return processed(logits[torch.arange(len(tails), device=logits.device), ends], self._settings).log_softmax(-1)

    def _read(self, shoots: Sequence[S]) -> Sequence[Tensor]:
        """Log-probs (nodes, V) of what follows the frontier of each draft."""
        logits, _ = self.model.read([shoot.read() for shoot in shoots])
        counts = [len(shoot.frontier) for shoot in shoots]
        of = torch.tensor([place for place, count in enumerate(counts) for _ in range(count)], device=logits.device)
        flat = torch.cat([logits[place, :count] for place, count in enumerate(counts)])
        return processed(flat, self._settings.rows(of)).log_softmax(-1).split(counts)
