"""The routers of a Mixture-of-Modules (Gong et al. 2024, arXiv 2407.06677), their load-balancing loss and their statistics.

For each token in each round a router scores the N modules of its block and SKIP, which has the last index, N:

    p = softmax(logits / τ),        the token takes the top-K outcomes, with weights p_k / Σ_{j ∈ top-K} p_j

With K = 1 a renormalised weight is 1 whatever p, so that only the load-balancing loss teaches the router; without
renormalisation (Switch Transformer: Fedus et al. 2021, arXiv 2101.03961) the weight is p_k, and the task's loss does as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot


class GruRouter(nn.Module):
    """A GRU over the rounds of a block: what a token was given before decides what it is given next.

        r = σ(W_r x + U_r h),  z = σ(W_z x + U_z h),  n = tanh(W_n x + r ⊙ U_n h),  h ← n + z ⊙ (h − n),  logits = W h

    The state h belongs to one token and is 0 at the start of a block: nothing of it passes from token to token, or outlives the
    block, and a key-value cache need not keep it.
    """

    def __init__(self, width: int, router_dim: int, outcomes: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, router_dim)
        self.head = nn.Linear(router_dim, outcomes)

    def forward(self, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden (tokens, width) and state (tokens, router_dim) or None → logits (tokens, outcomes), the next state."""
        state = self.cell(hidden, state)
        return self.head(state), state


class NaiveRouter(nn.Module):
    """A perceptron with one hidden layer, which does not know of the rounds before: logits = W₂ ReLU(W₁ x)."""

    def __init__(self, width: int, router_dim: int, outcomes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, router_dim), nn.ReLU(), nn.Linear(router_dim, outcomes))

    def forward(self, hidden: Tensor, state: None) -> tuple[Tensor, None]:
        """Hidden (tokens, width) → logits (tokens, outcomes)."""
        return self.layers(hidden), state


ROUTERS = {"gru": GruRouter, "naive": NaiveRouter}


class Routing(NamedTuple):
    """What one router said in one round."""

    probabilities: Tensor  # (rows, tokens, N + 1) float32
    weights: Tensor  # (rows, tokens, K) float32
    chosen: Tensor  # (rows, tokens, K) long; N is SKIP

    @property
    def skips(self) -> Tensor:
        """(rows, tokens) bool: the token takes no module. With K > 1 there is none, as one of its outcomes is a module."""
        return (self.chosen == self.probabilities.shape[-1] - 1).all(-1)


class Round(NamedTuple):
    attention: Routing
    feed_forward: Routing


def choose(logits: Tensor, *, top_k: int, tau: float, renormalise: bool) -> Routing:
    """The routing of logits (rows, tokens, N + 1); the softmax is in float32."""
    probabilities = (logits.float() / tau).softmax(-1)
    weights, chosen = probabilities.topk(top_k)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return Routing(probabilities, weights, chosen)


def load_balance(routings: Sequence[Routing], counted: Tensor | None = None) -> Tensor:
    """The loss of Switch Transformer over the routings of one router, a scalar:

        (N + 1) · Σ_e f_e P_e,      f_e: e's share of the tokens' K·T choices,   P_e: its mean probability

    1 where either is uniform, N + 1 where one outcome has everything. `counted` (rows, tokens): False for padding.
    """
    read = slice(None) if counted is None else counted.bool()
    probabilities = torch.cat([r.probabilities[read].flatten(0, -2) for r in routings])
    outcomes = probabilities.shape[-1]
    chosen = torch.cat([r.chosen[read].flatten() for r in routings])
    share = one_hot(chosen, outcomes).float().mean(0)
    return outcomes * (share * probabilities.mean(0)).sum()


def blocks_balance(blocks: Sequence[Sequence[Round]], counted: Tensor | None = None, *, per_round: bool) -> Tensor:
    """The mean of `load_balance` over the attention and feed-forward routers of all blocks: each over all of its rounds
    together or, `per_round`, averaged over its rounds. Together, a block that gives each round to another is balanced."""
    losses = []
    for rounds in blocks:
        for kind in ([r.attention for r in rounds], [r.feed_forward for r in rounds]):
            losses += [load_balance([one], counted) for one in kind] if per_round else [load_balance(kind, counted)]
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class Usage:
    """How a batch was routed, by block and round. A share is of tokens; those of the outcomes sum to K."""

    attention: Tensor  # (blocks, rounds, N_A + 1): the share that chose each module, and SKIP
    feed_forward: Tensor  # (blocks, rounds, N_F + 1)
    absent: Tensor  # (blocks, rounds): the share that took no attention module, which no other token attends to
    attention_entropy: Tensor  # (blocks, rounds): the mean entropy of the probabilities, in nats
    feed_forward_entropy: Tensor  # (blocks, rounds)

    @property
    def skipped(self) -> float:
        """The share of all choices that are SKIP: 1 where no module is used."""
        chosen = torch.cat([self.attention.flatten(0, 1).sum(-1), self.feed_forward.flatten(0, 1).sum(-1)])
        skip = torch.cat([self.attention[..., -1].flatten(), self.feed_forward[..., -1].flatten()])
        return float(skip.sum() / chosen.sum())


@torch.no_grad()
def usage(blocks: Sequence[Sequence[Round]], counted: Tensor | None = None) -> Usage:
    """Of a model output's `routing`. `counted` (rows, tokens): False for padding."""
    read = slice(None) if counted is None else counted.bool()

    def measured(kind: str, measure: Callable[[Routing, Tensor | slice], Tensor]) -> Tensor:
        return torch.stack([torch.stack([measure(getattr(r, kind), read) for r in rounds]) for rounds in blocks])

    return Usage(
        attention=measured("attention", _share),
        feed_forward=measured("feed_forward", _share),
        absent=measured("attention", _absent),
        attention_entropy=measured("attention", _entropy),
        feed_forward_entropy=measured("feed_forward", _entropy),
    )


def pooled(batches: Sequence[Usage], tokens: Sequence[int]) -> Usage:
    """Of batches of so many tokens, as if they had been one."""
    weights = [count / sum(tokens) for count in tokens]

    def mean(name: str) -> Tensor:
        return torch.stack([weight * getattr(batch, name) for weight, batch in zip(weights, batches, strict=True)]).sum(0)

    return Usage(**{field.name: mean(field.name) for field in fields(Usage)})


def _share(routing: Routing, read: Tensor | slice) -> Tensor:
    chosen = routing.chosen[read].flatten(0, -2)
    return one_hot(chosen, routing.probabilities.shape[-1]).sum(1).float().mean(0)


def _entropy(routing: Routing, read: Tensor | slice) -> Tensor:
    return torch.special.entr(routing.probabilities[read]).sum(-1).mean()


def _absent(routing: Routing, read: Tensor | slice) -> Tensor:
    return routing.skips[read].float().mean()
