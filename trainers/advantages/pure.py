"""PURE's advantage (Cheng et al. 2025, arXiv 2504.15275, eq. 7): leave-one-out, over a constant length for steps.

    A_{i,t} = ρ_i − 1/(K−1) Σ_{k≠i} ρ_k  +  G_{i,t} − 1/((K−1)·N) Σ_{k≠i} Σ_l G_{k,l},        G_{i,t} = Σ_{j≥t} γ^{j−t} r_{i,j}

ρ is what the components pay a completion for its answer, r what process rewards pay its steps, where they end. N is the most
tokens that a completion may have (`rollout.max_new_tokens`): a baseline per step, or per token that was written, would pay for
writing few steps. Paid in the min form (`rewards.credit`), G is the worst step's reward up to that step, and nothing after it.

Worked, for K = 2, N = 6: min-form rewards 1.5e-5, −0.1998, 4.6e-4 at tokens 1, 3, 5 of six, beside 0.0954, 0.5285 at tokens
1, 3 of four, have baselines 0.3841 and −0.1327, so the first completion's advantages begin with −0.5835. (The authors' code
puts ρ into r, and so under the baseline of steps: the same where every completion has N tokens.)
"""

from __future__ import annotations

from dataclasses import replace

import torch

from rlcore.batch import Advantages, GradedBatch
from rlcore.recipe.schema import Share
from trainers.advantages.rloo import rloo
from trainers.algorithm import needs
from trainers.groups import group_size, group_sum
from trainers.returns import rewards_to_go


@needs("groups")
def pure(batch: GradedBatch, *, gamma: Share = 1.0) -> Advantages:
    """A group is degenerate where its answers are paid alike and its steps nothing: equal rewards of steps still tell tokens
    apart, by what comes after them."""
    nothing = torch.zeros(batch.tokens.shape)
    steps = {name: reward for name, reward in batch.rewards.items() if name in batch.process}
    answers = {name: reward for name, reward in batch.rewards.items() if name not in batch.process}
    compared = rloo(replace(batch, rewards=answers or {"nothing": nothing}))
    to_go = rewards_to_go(replace(batch, rewards=steps or {"nothing": nothing}), gamma)
    totals = to_go.sum(1)
    baseline = (group_sum(totals, batch.group) - totals) / ((group_size(batch.group) - 1) * batch.sampling.max_new_tokens)
    unpaid = group_sum(to_go.abs().sum(1), batch.group) == 0
    return Advantages(compared.policy + (to_go - baseline[:, None]).float(), compared.degenerate & unpaid)
