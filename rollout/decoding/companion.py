"""A small model that drafts, level by level. What its drafters share: to keep up with the rows in a key–value cache of its own,
and to read a level of all rows' drafts in one forward pass. They differ in what they let grow.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlcore.errors import UserError
from rlcore.models import ModelSpec, configuration, locate
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
    """The model named `model` drafts; it has the target's vocabulary, and may be a compressed copy of it. It is drafted from at
    the rows' own temperature and truncation (greedy rows: at temperature 1). It learns nothing while the target does. Raises
    UserError where there is no such model, and where a row does not fit into its context."""

    def __init__(self, model: str, depth: int) -> None:
        self.location, self.depth = locate(model), depth

    def load(self, spec: ModelSpec) -> None:
        mine, targets = (configuration(each, spec.trust_remote_code).vocab_size for each in (self.location, spec.location))
        if mine != targets:
            raise UserError(
                f"the draft model {self.location} has {mine} tokens in its vocabulary, and the policy {targets}: "
                "a drafter needs one of the same tokenizer"
            )
        self.draft_with(replace(spec, location=self.location, adapter_rank=0).load())

    def draft_with(self, model: PreTrainedModel) -> None:
        """This is the model."""
        self.model = BranchedModel(model)
        self.rows: list[Row] = []  # in the model's order

    @abstractmethod
    def plant(self, row: Row) -> S:
        """A draft of the row's last token alone."""

    @abstractmethod
    def candidates(self, q: Tensor, of: Sequence[Row], level: int) -> tuple[Tensor, Tensor]:
        """For nodes of these rows at depth `level`, after which the draft model says q (nodes, V): tokens (nodes, k) and their
        probabilities in q, which are 0 where there is none."""

    @abstractmethod
    def branch(self, shoot: S, candidates: Sequence[Sequence[tuple[int, float]]], q: Tensor) -> None:
        """Let every node of the frontier get children among its candidates, tokens with their probabilities; of these children,
        those that are to get some themselves are the next frontier."""

    @abstractmethod
    def grown(self, shoot: S, room: int) -> Tree:
        """The tree of a draft that is done, which may be so deep."""

    @property
    def forwards(self) -> int:
        return self.model.forwards

    @property
    def read(self) -> int:
        return self.model.tokens

    @property
    def cache_bytes(self) -> int:
        return self.model.cache_bytes

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
        shoots = [self.plant(row) for row in self.rows]
        q, level = self._catch_up(), 0
        self._stop(shoots, level)
        q = q[[place for place, shoot in enumerate(shoots) if shoot.frontier]]
        while any(shoot.frontier for shoot in shoots):
            tokens, chances = self.candidates(
                q, [row for row, s in zip(self.rows, shoots, strict=True) for _ in s.frontier], level
            )
            found = [list(zip(*each, strict=True)) for each in zip(tokens.tolist(), chances.tolist(), strict=True)]
            begin = 0
            for shoot in shoots:
                end = begin + len(shoot.frontier)
                self.branch(shoot, found[begin:end], q[begin:end])
                begin = end
            level += 1
            self._stop(shoots, level)
            if any(shoot.frontier for shoot in shoots):
                q = self._read(shoots)
        trees = {row: self.grown(shoot, row.room) for row, shoot in zip(self.rows, shoots, strict=True)}
        return [trees[row] for row in rows]

    def _stop(self, shoots: Sequence[S], level: int) -> None:
        for row, shoot in zip(self.rows, shoots, strict=True):
            if level >= min(self.depth, row.room):
                shoot.frontier = []

    def _catch_up(self) -> Tensor:
        """Keep what was accepted of the last draft, and read the rest of the rows up to their last tokens, which is settled
        then. The distributions (rows, V) of what follows them."""
        unsettled = [row.ids[length:] for row, length in zip(self.rows, self.model.lengths, strict=True)]
        paths = [self.model.follow(place, ids[:-1]) for place, ids in enumerate(unsettled)]
        self.model.keep(paths)
        tails = [ids[len(path) :] for ids, path in zip(unsettled, paths, strict=True)]
        logits = self.model.read([(tail, range(-1, len(tail) - 1)) for tail in tails]).logits
        self.model.keep([range(len(tail)) for tail in tails])
        self._settings = SamplingRows.of([row.request.sampling for row in self.rows], self.model.vocabulary, logits.device)
        ends = torch.tensor([len(tail) - 1 for tail in tails], device=logits.device)
        return processed(logits[torch.arange(len(tails), device=logits.device), ends], self._settings).softmax(-1)

    def _read(self, shoots: Sequence[S]) -> Tensor:
        """Read the frontiers of all drafts. The distributions (nodes, V) of what follows, those of a draft side by side."""
        logits = self.model.read([shoot.read() for shoot in shoots]).logits
        at = [(place, k) for place, shoot in enumerate(shoots) for k in range(len(shoot.frontier))]
        places, ks = torch.tensor(at, device=logits.device).T
        return processed(logits[places, ks], self._settings.rows(places)).softmax(-1)
