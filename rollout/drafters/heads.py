"""Heads draft: the target says, with every token, what it takes the k after it to be (`rollout.decoding.heads`). A guess at one
step is independent of those at the others, so the draft is the tree of the most probable combinations (Cai et al. 2024, arXiv
2401.10774, §2.1.2, chosen anew for each token here).

The heads can follow a policy that learns: they are trained on what it has said since the last weight sync, when its new weights
have come (`rollout.decoding.teach`). What they guess never changes what is sampled.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from transformers import PreTrainedModel

from rollout.decoding import teach
from rollout.decoding.drafter import Drafter, Row
from rollout.decoding.heads import Carried, Pointwise, load
from rollout.decoding.model import Read
from rollout.decoding.teach import Text
from rollout.decoding.tree import Tree
from rollout.sampling import SamplingRows, processed

TEXTS_AT_ONCE, TOKENS_AT_ONCE = 16, 8192  # of a step of training, and of a pass of it


class Heads(Drafter):
    """Drafts trees of `nodes` tokens, by the heads in `folder` and their `children` most likely tokens a step.

    At every weight sync they learn for `refresh` steps, of 16 completions each, by AdamW with this `learning_rate`; `decay` is
    γ of `rollout.decoding.teach`."""

    def __init__(
        self,
        *,
        folder: str,
        nodes: PositiveInt = 12,
        children: PositiveInt = 4,
        refresh: NonNegativeInt = 0,
        learning_rate: PositiveFloat = 1e-4,
        decay: Annotated[float, Field(gt=0, le=1)] = 0.8,
    ) -> None:
        self.folder, self.nodes, self.children = folder, nodes, children
        self.refresh, self.learning_rate, self.decay = refresh, learning_rate, decay
        self._ahead: dict[Row, Tensor] = {}  # (k, H), at the row's last token but one
        self._said: list[Text] = []  # since the last sync

    def join(self, target: PreTrainedModel) -> None:
        self.target = target
        self.heads = load(self.folder, target.config).to(target.device)
        self._optimizer = torch.optim.AdamW(self.heads.parameters(), lr=self.learning_rate, weight_decay=0.0)

    @property
    def carried(self) -> Carried | None:
        return self.heads if isinstance(self.heads, Carried) else None

    def begin(self, rows: Sequence[Row], hidden: Sequence[Tensor]) -> None:
        if isinstance(self.heads, Pointwise):
            self._ahead |= {row: self.heads.ahead(of[-1]) for row, of in zip(rows, hidden, strict=True) if len(of)}

    def observe(self, rows: Sequence[Row], paths: Sequence[Sequence[int]], read: Read) -> None:
        last = torch.arange(len(rows)), torch.tensor([path[-1] for path in paths])
        if isinstance(self.heads, Pointwise):
            self._ahead = dict(zip(rows, self.heads.ahead(read.hidden[last]), strict=True))
        else:
            self._ahead = {} if read.ahead is None else dict(zip(rows, read.ahead[last], strict=True))

    def forget(self, row: Row) -> None:
        self._ahead.pop(row, None)
        if self.refresh:
            self._said.append(Text(tuple(row.ids), len(row.request.prompt_ids)))

    def propose(self, rows: Sequence[Row]) -> list[Tree]:
        known = [row for row in rows if row in self._ahead and row.room]
        guesses = dict(zip(known, self._guesses(known), strict=True)) if known else {}
        return [Tree.product(row.ids[-1], guesses.get(row, [])[: row.room], self.nodes) for row in rows]

    def _guesses(self, rows: Sequence[Row]) -> list[list[list[tuple[int, float]]]]:
        """Of each row and step, the likeliest tokens and their probabilities."""
        head = self.target.get_output_embeddings()
        logits = head(torch.stack([self._ahead[row] for row in rows])).flatten(0, 1)
        settings = SamplingRows.of(
            [row.request.sampling for row in rows for _ in range(self.heads.steps)], logits.shape[1], logits.device
        )
        chances, tokens = processed(logits, settings).softmax(-1).topk(min(self.children, logits.shape[1]))
        flat = [list(zip(*each, strict=True)) for each in zip(tokens.tolist(), chances.tolist(), strict=True)]
        return [flat[i : i + self.heads.steps] for i in range(0, len(flat), self.heads.steps)]

    def synced(self) -> None:
        said, self._said = self._said, []
        if not said:
            return
        draw = random.Random(len(said))
        for _ in range(self.refresh):
            texts = draw.sample(said, min(TEXTS_AT_ONCE, len(said)))
            teach.learn(self.heads, self.target, texts, TOKENS_AT_ONCE, self.decay)
            torch.nn.utils.clip_grad_norm_(self.heads.parameters(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()
