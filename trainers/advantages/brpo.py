"""BRPO's advantage (Qi et al. 2025, "Optimizing anytime reasoning via budget relative policy optimization", arXiv 2505.13438),
for thoughts that were cut at budgets b_0 < … < b_{S−1} (`rollout.anytime`).

    r_s  = mean of what the summaries of a thought earn where it is cut at b_s
    G_s  = Σ_{j≥s} p_j·r_j                                      what its tokens from segment s on have a part in
    V1_s = (Σ_{j<s} 2^j·r_j / Σ_{j<s} 2^j)·Σ_{j≥s} p_j          the same, judged by what it earned until then
    V2_s = mean of G_s over the thoughts of the problem
    A_s  = G_s − (s·V1_s + (S − s)·V2_s) / S                    at the tokens of segment s, from b_{s−1} (or 0) to b_s
    A    = ρ − mean(ρ) over the summaries of that thought there, at the tokens of the summary that earns ρ

p is how much each budget counts: `uniform`, `linear` (p_s ∝ b_s), or `base`, where the last is all that counts. The further a
thought has come, the more of the baseline is its own past (V1), and the less the other thoughts of the problem (V2). No spread
is divided by. A thought that has ended is the same at all later budgets: its summaries there are compared with each other.

Worked: S = 4, p uniform, r = 0 1 1 1 and 0 0 0 1. At s = 2, G = 0.5 and 0.25, V1 = (0 + 2)/3·0.5 = 0.3333 and 0, V2 = 0.375, so
A = 0.5 − (2·0.3333 + 2·0.375)/4 = 0.1458 and 0.25 − (2·0 + 2·0.375)/4 = 0.0625. In all 0.25, 0.375, 0.1458, 0.0268 and −0.25,
−0.125, 0.0625, 0.1875.

A thought that lacks a budget, as no summary there could be judged, is compared with nothing: its tokens get 0. A group of equal
rewards is degenerate and gives 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlcore.batch import Advantages, GradedBatch
from trainers.algorithm import needs
from trainers.groups import group_mean, uniform


@needs("groups", "budgets")
def brpo(batch: GradedBatch, *, prior: Literal["uniform", "linear", "base"] = "uniform") -> Advantages:
    assert batch.cut is not None  # what `needs` is for
    thought, budget, end = batch.cut.T
    totals = batch.totals.double()
    totals = totals - group_mean(totals, batch.group)  # changes no advantage; those of equal rewards are 0 to the bit
    _, place = torch.stack([batch.group, thought, end], 1).unique(dim=0, return_inverse=True)
    of_summary, of_thought = totals - group_mean(totals, place), torch.zeros_like(totals)
    for group in batch.group.unique():
        members = batch.group == group
        thoughts, i = thought[members].unique(return_inverse=True)
        budgets, s = budget[members].unique(return_inverse=True)
        earned = torch.full((len(thoughts), len(budgets)), torch.nan, dtype=torch.float64)
        earned[i, s] = group_mean(totals[members], i * len(budgets) + s)
        whole = ~earned.isnan().any(1)
        advantages = torch.zeros_like(earned)
        advantages[whole] = of_segments(earned[whole], PRIORS[prior](budgets.double()))
        of_thought[members] = advantages[i, s]
    is_thought = torch.arange(batch.tokens.shape[1]) < end[:, None]
    policy = torch.where(is_thought, of_thought[:, None], of_summary[:, None])
    return Advantages(policy.float(), uniform(batch.totals, batch.group))


PRIORS = {
    "uniform": lambda budgets: torch.ones_like(budgets) / len(budgets),
    "linear": lambda budgets: budgets / budgets.sum(),
    "base": lambda budgets: (budgets == budgets.max()).double(),
}


def of_segments(earned: Tensor, prior: Tensor) -> Tensor:
    """(thoughts, S) A_s of the thoughts of a problem, from their r (thoughts, S) and p (S,)."""
    segments = len(prior)
    s = torch.arange(segments)
    left = prior.flip(0).cumsum(0).flip(0)
    reward_to_go = (prior * earned).flip(1).cumsum(1).flip(1)
    before = torch.nn.functional.pad((2.0**s * earned).cumsum(1), (1, 0))[:, :-1]
    of_itself = before / (2.0**s - 1).clamp(min=1) * left
    of_others = reward_to_go.mean(0)
    return reward_to_go - (s * of_itself + (segments - s) * of_others) / segments
