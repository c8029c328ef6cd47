"""TEMPO's advantage (Tran et al. 2025, "Exploiting tree structure for credit assignment", arXiv 2509.18314).

    A_{i,t} = [ (ρ_i − mean(ρ)) + (V(y_≤t) − V(y_<t)) ] / (std(ρ) + ε)

V(prefix) is the mean reward of those completions of the group that begin with it: the value of a node in the tree that they
form, whose root is worth mean(ρ). So it is GRPO's advantage, and a TD error where completions part. A prefix that only one has
is worth its own ρ, and from there on TD = 0. Where nothing is shared, GRPO's advantage counts twice at the first token.

Worked: ρ = 1, 0, 1, 0 for tokens 1 2 3, 1 2 4, 1 5 6, 7 8 9. The node 1 is worth 2/3, the node 1 2 is worth 1/2, and σ = 0.577:
the first completion gets (0.5 + 1/6)/σ, (0.5 − 1/6)/σ, (0.5 + 0.5)/σ = 1.155, 0.577, 1.732.

Tokens the policy did not sample belong to the prefixes too. A group of equal rewards gives 0 for all, and is degenerate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.batch import Advantages, GradedBatch
from rlcore.recipe.schema import NonNegativeFloat
from trainers.algorithm import needs
from trainers.groups import group_mean, group_size, group_std, uniform


@needs("groups", "kl_in_loss")
def tempo(batch: GradedBatch, *, epsilon: NonNegativeFloat = 1e-6) -> Advantages:
    totals = batch.totals.double()
    centred = totals - group_mean(totals, batch.group)
    scale = group_std(totals, batch.group) + epsilon
    policy = (centred[:, None] + temporal_differences(batch)) / scale[:, None]
    return Advantages(policy.float(), uniform(totals, batch.group))


def temporal_differences(batch: GradedBatch) -> Tensor:
    """(B, T) V(y_≤t) − V(y_<t), in double precision; 0 where padded. Goes down all trees at once, a depth at a time, with the
    completions that have not ended and share their prefix."""
    totals = batch.totals.double()
    vocabulary = int(batch.tokens.max()) + 1 if batch.tokens.numel() else 1
    result = torch.zeros(batch.tokens.shape, dtype=torch.float64)
    rows, node, value = torch.arange(len(totals)), batch.group, group_mean(totals, batch.group)
    for t in range(batch.tokens.shape[1]):
        on = (group_size(node) > 1) & batch.present[rows, t].bool()
        rows, node, value = rows[on], node[on], value[on]
        if not len(rows):
            break
        _, node = (node * vocabulary + batch.tokens[rows, t]).unique(return_inverse=True)
        after = group_mean(totals[rows], node)
        result[rows, t] = after - value
        value = after
    return result
