"""A small causal model drafts (Leviathan et al. 2023, arXiv 2211.17192: a chain; SpecInfer, arXiv 2305.09781: a tree).

Level by level, every node of the frontier gets `children`, drawn from the draft model's distribution without replacement
(greedy rows: its most likely tokens), and the frontier of the next level is the `width` new nodes of highest probability, which
is the product of those along the path. Which nodes get children depends on what was drawn above them, how many they get does
not: so the verifier's recursive rejection is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor
from transformers import PreTrainedModel

from rlcore.types import seed_from
from rollout.decoding import companion
from rollout.decoding.companion import Companion
from rollout.decoding.drafter import Row
from rollout.decoding.tree import Tree
from rollout.sampling import inverse_cdf, uniforms


class Shoot(companion.Shoot):
    def __init__(self, root: int) -> None:
        super().__init__(root)
        self.q: dict[int, Tensor] = {}


class DraftModel(Companion[Shoot]):
    """Drafts trees that are `depth` deep; with one child a node they are chains."""

    def __init__(
        self, model: PreTrainedModel, *, depth: PositiveInt = 4, children: PositiveInt = 1, width: PositiveInt = 4
    ) -> None:
        super().__init__(model, depth)
        self.children, self.width = children, width
        self._w: dict[Row, np.ndarray] = {}  # (limit, children) random numbers that draw drafts

    def begin(self, rows: Sequence[Row], hidden: Sequence[Tensor]) -> None:
        super().begin(rows, hidden)
        for row in rows:
            streams = [uniforms(seed_from(row.request.seed, "draft", k), row.limit) for k in range(self.children)]
            self._w[row] = np.stack(streams, 1)

    def forget(self, row: Row) -> None:
        super().forget(row)
        del self._w[row]

    def plant(self, row: Row) -> Shoot:
        return Shoot(row.ids[-1])

    def branch(self, row: Row, shoot: Shoot, logprobs: Tensor, level: int) -> None:
        q = logprobs.exp()
        greedy = row.request.sampling.temperature == 0
        w = torch.from_numpy(self._w[row][len(row.tokens) + level]).to(q.device)
        tokens, chances = most_likely(q, self.children) if greedy else without_replacement(q, w)
        new = []
        for i, node in enumerate(shoot.frontier):
            children = zip(tokens[i].tolist(), chances[i].tolist(), strict=True)
            new += [shoot.add(token, node, chance) for token, chance in children if chance > 0]
            if not greedy:
                shoot.q[node] = q[i]
        shoot.frontier = sorted(new, key=lambda node: -shoot.chances[node])[: self.width]

    def grown(self, row: Row, shoot: Shoot) -> Tree:
        return Tree(shoot.tokens, shoot.parents, shoot.q)


def most_likely(q: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Tokens (nodes, count) and their probabilities, the most likely first."""
    chances, tokens = q.topk(min(count, q.shape[1]))
    return tokens, chances


def without_replacement(q: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """As many tokens of each q (nodes, V) as there are random numbers w, in the order in which they are drawn, and their
    probabilities in q; a probability of 0 where nothing was left to draw."""
    left, drawn = q.clone(), []
    for number in w:
        token = inverse_cdf(left, number.expand(len(q))).clamp(max=q.shape[1] - 1)[:, None]
        drawn.append((token, left.gather(1, token)))
        left.scatter_(1, token, 0)
    tokens, chances = zip(*drawn, strict=True)
    return torch.cat(tokens, 1), torch.cat(chances, 1)
