"""What a drafter is, and how it is held to it: one that fails or hands in what cannot be read stops the run, by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.protocols import Tokens
from rlcore.types import FinishReason, Request, seed_from
from rollout.decoding.heads import Carried
from rollout.decoding.model import Read
from rollout.decoding.tree import Tree, root
from rollout.sampling import uniforms


@dataclass(eq=False)
class Row:
    """A completion under way. Drafters read it, and change nothing."""

    request: Request
    limit: int  # tokens that the completion can have, forced prefix included
    ids: list[int] = field(init=False)  # prompt and completion so far; the target has read all but the last
    logprobs: list[float] = field(default_factory=list)  # of those that were sampled
    u: np.ndarray = field(init=False)  # (limit,) that draw the tokens, as in plain decoding
    v: np.ndarray = field(init=False)  # (limit,) that accept what was drafted at random
    finish_reason: FinishReason | None = None  # None: under way

    def __post_init__(self) -> None:
        self.ids = [*self.request.prompt_ids, *self.request.prefix.token_ids]
        self.u = uniforms(self.request.seed, self.limit)
        self.v = uniforms(seed_from(self.request.seed, "accept"), self.limit)

    @property
    def tokens(self) -> list[int]:
        """The completion so far, forced prefix included."""
        return self.ids[len(self.request.prompt_ids) :]

    @property
    def sampled(self) -> list[int]:
        """The completion so far, without the forced prefix."""
        return self.tokens[len(self.request.prefix.token_ids) :]

    @property
    def drawn(self) -> int:
        """How many tokens these are."""
        return len(self.ids) - len(self.request.prompt_ids)

    @property
    def room(self) -> int:
        """How deep a draft may be: what is accepted of it is followed by a token that the target draws itself."""
        return self.limit - self.drawn - 1


class Drafter(ABC):
    """Proposes what comes next, as a tree. It is made of its options alone; what it takes of a machine, it takes in `load`."""

    draws: ClassVar[bool] = False  # its drafts at random, for rows that are not greedy: then tokens depend on it

    def load(self, spec: ModelSpec) -> None:  # noqa: B027 - a hook
        """Once, before all else: this is the target, and how it is held. Raises UserError where it cannot be drafted for."""

    def join(self, target: PreTrainedModel) -> None:  # noqa: B027 - a hook
        """Before rows begin: the target itself, whose weights may change while there are none. It is not to be changed."""

    @property
    def carried(self) -> Carried | None:
        """What the target is to carry along at every node that it reads; see `observe`."""
        return None

    @property
    def forwards(self) -> int:
        """How many forward passes its own model has made, if it has one; prefills are not counted."""
        return 0

    @property
    def read(self) -> int:
        """How many tokens these have read."""
        return 0

    @property
    def cache_bytes(self) -> int:
        """How much the keys and values of its own model take, if it has one."""
        return 0

    @abstractmethod
    def propose(self, rows: Sequence[Row]) -> list[Tree]:
        """A tree for each row, which grows from the row's last token and is no deeper than its `room`. The rows are all those
        that have begun and are not forgotten."""

    def begin(self, rows: Sequence[Row], hidden: Sequence[Tensor]) -> None:  # noqa: B027 - a hook
        """These rows enter. `hidden` (tokens, H) of each: the target's last hidden states of all but its last token; vLLM has
        none to give, and calls no `observe`."""

    def observe(self, rows: Sequence[Row], paths: Sequence[Sequence[int]], read: Read) -> None:  # noqa: B027 - a hook
        """The target has `read` a tree of each row. `paths` are the nodes that came true, the root first: the row has their
        tokens now, and one more that the target drew itself. In a round without drafts the trees are roots, and nothing was
        carried along."""

    def synced(self) -> None:  # noqa: B027 - a hook
        """The target has other weights than before. No rows are under way; gradients are recorded."""

    def forget(self, row: Row) -> None:  # noqa: B027 - a hook
        """The row leaves: it is done, or `interrupted`."""

    def learn(self, prompt_ids: Tokens, token_ids: Tokens) -> None:  # noqa: B027 - a hook
        """A completion is done for which nothing was drafted: it never was a row."""


@contextmanager
def blamed(drafter: Drafter) -> Iterator[None]:
    """Whatever goes wrong within is a UserError that names the drafter."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"the drafter {type(drafter).__name__} failed: {kind}{error}") from error


def proposed(drafter: Drafter, rows: Sequence[Row], vocabulary: int) -> list[Tree]:
    """The trees that a drafter proposes. Raises UserError where it fails, or where the target cannot read them."""
    with blamed(drafter):
        trees = drafter.propose(rows)
        if len(trees) != len(rows):
            raise ValueError(f"it proposed {len(trees)} trees for {len(rows)} rows")
        for tree, row in zip(trees, rows, strict=True):
            _refuse_unfit(tree, row, vocabulary)
        _refuse_distributions(trees, vocabulary)
    return trees


def undrafted(rows: Sequence[Row]) -> list[Tree]:
    """Trees of nothing but the rows' last tokens."""
    return [root(row.ids[-1]) for row in rows]


def _refuse_unfit(tree: Tree, row: Row, vocabulary: int) -> None:
    if not isinstance(tree, Tree):
        raise TypeError(f"it proposed a {type(tree).__name__} where a Tree is due")
    if tree.tokens[0] != row.ids[-1]:
        raise ValueError(f"its tree grows from token {tree.tokens[0]}; the row's last is {row.ids[-1]}")
    if outside := [token for token in tree.tokens if not 0 <= token < vocabulary]:
        raise ValueError(f"it proposed the token {outside[0]}; the target's vocabulary has {vocabulary}")
    if tree.depth > row.room:
        raise ValueError(f"its tree is {tree.depth} deep; the row has room for {row.room}")


def _refuse_distributions(trees: Sequence[Tree], vocabulary: int) -> None:
    """All of them are looked at together: each look waits for the device."""
    given = [(q, list(tree.children[node])) for tree in trees for node, q in tree.q.items()]
    if wrong := [tuple(q.shape) for q, _ in given if q.shape != (vocabulary,)]:
        raise ValueError(f"the distribution of its draft has the shape {wrong[0]}, not ({vocabulary},)")
    if not given:
        return
    q = torch.stack([each for each, _ in given]).float()
    if not bool(((q.sum(-1) - 1).abs() < 1e-3).all()) or float(q.min()) < 0:
        raise ValueError("what it says that its draft was drawn from is no distribution")
    drawn = torch.tensor([(i, child) for i, (_, children) in enumerate(given) for child in children], device=q.device)
    if len(drawn) and float(q[tuple(drawn.T)].min()) <= 0:
        raise ValueError("its draft holds a token of probability 0 in the distribution that it was drawn from")
