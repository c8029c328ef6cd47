"""PRIME's advantage (Cui et al. 2025, arXiv 2502.01456): leave-one-out by itself for answers and for the rewards of tokens.

    A_{i,t} = ρ_i − 1/(K−1) Σ_{k≠i} ρ_k  +  Σ_{s≥t} γ^{s−t} [ r_{i,s} − 1/(K−1) Σ_{k≠i} r̄_k ],        r̄_k = Σ_s r_{k,s} / |y_k|

ρ is what the components pay a completion for its answer, r what process rewards pay its tokens. Where PURE's baseline is a
constant that is taken from what is still to come, PRIME's is taken from every token, as the reward per token of the others: a
token is pushed up where what follows it is paid better than the others' tokens are. So it is made for rewards that all tokens
have (`rewards.process.prime`); one of steps would be paid for having few.

`scale_to` first multiplies r so that the largest |Σ_{s≥t} r_{i,s}| of the batch is this, whatever the components' weights;
`whiten` ends with whitening over the tokens of the batch. The authors' code does both, with 5, and has another baseline:
r·K/(K−1) − Σ_k r̄_k/(K−1) over all k.

Worked: r = 0.1, 0.3 and −0.2, ρ = 1 and 0 have r̄ = 0.2 and −0.2, so A = 1.8, 1.5 and −1.4.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import PositiveFloat

from rlcore.batch import Advantages, GradedBatch
from rlcore.recipe.schema import Share
from trainers.advantages.rloo import rloo
from trainers.algorithm import needs
from trainers.groups import group_size, group_sum
from trainers.returns import rewards_to_go
from trainers.whiten import whitened


@needs("groups")
def prime(batch: GradedBatch, *, gamma: Share = 1.0, scale_to: PositiveFloat | None = None, whiten: bool = False) -> Advantages:
    """A group is degenerate where its answers are paid alike and its tokens nothing."""
    nothing = torch.zeros(batch.tokens.shape)
    tokens = {name: reward for name, reward in batch.rewards.items() if name in batch.process}
    answers = {name: reward for name, reward in batch.rewards.items() if name not in batch.process}
    compared = rloo(replace(batch, rewards=answers or {"nothing": nothing}))
    earned = replace(batch, rewards=tokens or {"nothing": nothing}).per_token.double()
    if scale_to is not None:
        largest = rewards_to_go(replace(batch, rewards={"earned": earned})).abs().max()
        earned = earned * (scale_to / largest if largest > 0 else 1)
    rate = earned.sum(1) / batch.loss_mask.sum(1).clamp(min=1)
    baseline = (group_sum(rate, batch.group) - rate) / (group_size(batch.group) - 1)
    to_go = rewards_to_go(replace(batch, rewards={"earned": earned - baseline[:, None] * batch.loss_mask}), gamma)
    unpaid = group_sum(earned.abs().sum(1), batch.group) == 0
    policy = compared.policy + to_go.float()
    return Advantages(whitened(policy, batch.loss_mask) if whiten else policy, compared.degenerate & unpaid)
