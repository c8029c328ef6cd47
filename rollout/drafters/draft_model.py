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

from rlcore.types import seed_from
from rollout.decoding import companion
from rollout.decoding.companion import Companion
from rollout.decoding.drafter import Row
from rollout.decoding.tree import Tree
from rollout.sampling import inverse_cdf, uniforms


class Shoot(companion.Shoot):
    """With the distributions that children were drawn from, unless it is `greedy`."""

    def __init__(self, root: int, greedy: bool) -> None:
        super().__init__(root)
        self.greedy = greedy
        self.q: dict[int, Tensor] = {}


class DraftModel(Companion[Shoot]):
    """Drafts trees that are `depth` deep, by the model of that name; with one child a node they are chains."""

    draws = True

    def __init__(self, *, model: str, depth: PositiveInt = 4, children: PositiveInt = 1, width: PositiveInt = 4) -> None:
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
        return Shoot(row.ids[-1], _greedy(row))

    def candidates(self, q: Tensor, of: Sequence[Row], level: int) -> tuple[Tensor, Tensor]:
        w = torch.tensor(np.stack([self._w[row][row.drawn + level] for row in of]), device=q.device)
        greedy = torch.tensor([_greedy(row) for row in of], device=q.device)
        return in_turn(q, w, greedy)

    def branch(self, shoot: Shoot, candidates: Sequence[Sequence[tuple[int, float]]], q: Tensor) -> None:
        new = []
        for i, (node, found) in enumerate(zip(shoot.frontier, candidates, strict=True)):
            new += [shoot.add(token, node, chance) for token, chance in found if chance > 0]
            if not shoot.greedy:
                shoot.q[node] = q[i]
        shoot.frontier = sorted(new, key=lambda node: -shoot.chances[node])[: self.width]

    def grown(self, shoot: Shoot, room: int) -> Tree:
        return Tree(shoot.tokens, shoot.parents, shoot.q)


def _greedy(row: Row) -> bool:
    return row.request.sampling.temperature == 0


def in_turn(q: Tensor, w: Tensor, greedy: Tensor) -> tuple[Tensor, Tensor]:
    """As many tokens (nodes, k) of each q (nodes, V) as there are random numbers w (nodes, k) for it, drawn one after the other
    without replacement; the most likely ones where `greedy` (nodes,). And their probabilities in q; 0 where none was left."""
    left, drawn = q.clone(), []
    for number in w.T:
        token = inverse_cdf(left, number).clamp(max=q.shape[1] - 1).where(~greedy, left.argmax(-1))[:, None]
        drawn.append((token, left.gather(1, token)))
        left.scatter_(1, token, 0)
    tokens, chances = zip(*drawn, strict=True)
    return torch.cat(tokens, 1), torch.cat(chances, 1)
