"""What the target keeps of a draft. The one verifier, for every drafter; it is exact, whatever was drafted.

At a node the target's processed distribution p is that of plain decoding. The token that follows the node is drawn, and if it
was drafted there, the walk goes on at that child. How it is drawn:

*Matched* (no q at the node; always where greedy): from p with the position's own random number u, as plain decoding draws it. A
draft only says which forward passes are not needed: the completion is that of plain decoding, token for token, with the
same seed. A child c is followed with probability p(c), which for drafts that are no random draws is the best possible.

*Recursive rejection* (children c₁ … c_m drawn from q one after the other, without replacement): with p₁ = p and q₁ = q

    accept cᵢ with probability  aᵢ = min(1, pᵢ(cᵢ) / qᵢ(cᵢ)), else
    pᵢ₊₁ = (pᵢ − qᵢ)₊ normalised          qᵢ₊₁ = qᵢ without cᵢ, normalised

and if none is accepted, draw from p_{m+1}. What comes out is distributed as p (Leviathan et al. 2023, arXiv 2211.17192,
appendix A.1, for m = 1; Jeon et al. 2024, arXiv 2402.14160, §3.2, for draws without replacement).
The m coins are one random number v: cᵢ is accepted where v lies in [1 − lᵢ, 1 − lᵢ(1 − aᵢ)), with lᵢ = Π_{j<i} (1 − a_j).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlcore.batch import pad
from rollout.decoding.tree import Tree
from rollout.sampling import SamplingRows, draw, inverse_cdf, processed


@dataclass
class Walk:
    """Through a tree: the nodes come by, the root first, and of each the token that followed it, with its log-prob under the
    target's processed distribution. The last token is not in the tree."""

    nodes: list[int] = field(default_factory=lambda: [0])
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def verify(logits: Tensor, trees: Sequence[Tree], settings: SamplingRows, u: Tensor, v: Tensor) -> list[Walk]:
    """A walk through each of R trees. `logits` (R, N, V) at the nodes; `u` and `v` (R, D): random numbers in [0, 1) for the
    tokens that follow nodes of depth 0 … D−1; a draft that was drawn at random must not depend on them."""
    walks = [Walk() for _ in trees]
    walking, depth = list(range(len(trees))), 0
    while walking:
        rows = torch.tensor(walking, device=logits.device)
        nodes = [walks[r].nodes[-1] for r in walking]
        at = [(trees[r], node) for r, node in zip(walking, nodes, strict=True)]
        here = logits[rows, torch.tensor(nodes, device=logits.device)]
        tokens, logprobs = _follow(here, at, settings.rows(rows), u[rows, depth], v[rows, depth])
        going = []
        for r, (tree, node), token, logprob in zip(walking, at, tokens.tolist(), logprobs.tolist(), strict=True):
            walks[r].tokens.append(token)
            walks[r].logprobs.append(logprob)
            if token in tree.children[node]:
                walks[r].nodes.append(tree.children[node][token])
                going.append(r)
        walking, depth = going, depth + 1
    return walks


def _follow(
    logits: Tensor, at: Sequence[tuple[Tree, int]], settings: SamplingRows, u: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """The tokens (R,) that follow these nodes, and their log-probs (R,)."""
    scaled = processed(logits, settings)
    tokens, logprobs = draw(scaled, settings, u)
    rejecting = [i for i, (tree, node) in enumerate(at) if node in tree.q]
    if rejecting:
        q = torch.stack([tree.q[node] for tree, node in at if node in tree.q]).to(scaled)
        children = [tuple(tree.children[node]) for tree, node in at if node in tree.q]
        drawn = rejection(scaled[rejecting].softmax(-1), q, children, u[rejecting], v[rejecting])
        tokens[rejecting] = torch.where(settings.greedy[rejecting], tokens[rejecting], drawn)
        logprobs = scaled.log_softmax(-1).gather(1, tokens[:, None])[:, 0].where(~settings.greedy, 0.0)
    return tokens, logprobs


def rejection(p: Tensor, q: Tensor, children: Sequence[Sequence[int]], u: Tensor, v: Tensor) -> Tensor:
    """Tokens (R,) distributed as p (R, V), where children were drawn from q (R, V) in turn, without replacement: recursive
    rejection sampling. `u` and `v` (R,) in [0, 1) draw from what is left of p, and accept."""
    candidates = pad(children, torch.long, -1).to(p.device)
    chosen = torch.full(v.shape, -1, device=p.device)
    left = torch.ones_like(v)  # the probability that no candidate so far is accepted
    for column in candidates.T:
        present, c = column >= 0, column.clamp(min=0)[:, None]
        accepted = torch.where(present, (p.gather(1, c) / q.gather(1, c))[:, 0].clamp(max=1), 0)
        left = left * (1 - accepted)
        chosen = chosen.where((chosen >= 0) | (v >= 1 - left), column)
        p = torch.where(present[:, None], _normalised((p - q).clamp(min=0), p), p)
        q = torch.where(present[:, None], _normalised(q.scatter(1, c, 0), q), q)
    return torch.where(chosen >= 0, chosen, inverse_cdf(p, u))


def _normalised(weights: Tensor, otherwise: Tensor) -> Tensor:
    """To sum to one in each row; `otherwise` where they are all 0: there p = q, and what is left is never drawn from."""
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total, otherwise)
