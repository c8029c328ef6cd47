"""TreePO's advantage (Li et al. 2025, arXiv 2508.17445), for completions that were sampled as a tree.

    a_{i,d} = ρ_i − mean(ρ)             over the completions that pass the node that i passes at depth d, n_{i,d} of them
    A_i     = Σ_d w_{i,d}·a_{i,d}       w_{i,d} = n_{i,d} / Σ_d n_{i,d}, or (not `by_size`) all alike;  whitened over the batch

Every node is a group within the group: a completion is compared with all, then with those that began as it did, more and more
alike. At depth 0 is the root, that of the whole group. A node that one completion alone passes has nothing to compare and is
left out; with `skip_uniform`, so is one whose completions all earned the same.

Worked, before whitening: ρ = 1, 0, 0, 0, of which the first two share a node of depth 1. At the root a = 0.75, −0.25, −0.25 and
−0.25, there 0.5 and −0.5, so A = ⅔·0.75 + ⅓·0.5 = 0.667, −0.333, −0.25, −0.25.

A group of equal rewards is degenerate; it gives 0 where nothing is whitened (see `reinforce_pp_baseline`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.batch import Advantages, GradedBatch
from trainers.algorithm import needs
from trainers.groups import group_mean, group_size, uniform
from trainers.whiten import whitened


@needs("groups", "tree")
def treepo(batch: GradedBatch, *, by_size: bool = True, skip_uniform: bool = False, whiten: bool = True) -> Advantages:
    """Raises ValueError for a group that has not one root."""
    totals = batch.totals.double()
    advantage, weights = torch.zeros_like(totals), torch.zeros_like(totals)
    for node in nodes(batch):
        size = group_size(node)
        compared = (node >= 0) & (size > 1)
        if skip_uniform:
            compared &= ~uniform(totals, node)
        weight = compared * (size if by_size else 1)
        advantage += weight * (totals - group_mean(totals, node))
        weights += weight
    policy = (advantage / weights.clamp(min=1)).float()[:, None].expand_as(batch.tokens)
    return Advantages(whitened(policy, batch.loss_mask) if whiten else policy, uniform(totals, batch.group))


def nodes(batch: GradedBatch) -> list[Tensor]:
    """At each depth the node that each completion passes, (B,), numbered over all groups; -1 after its end."""
    assert batch.path is not None  # what `needs` is for
    root = batch.path[:, 0]
    if (root < 0).any() or not uniform(root, batch.group).all():
        raise ValueError("GradedBatch.path has at depth 0 the root, one for all completions of a group")
    pairs = (torch.stack([batch.group, node], 1) for node in batch.path.T)
    return [pair.unique(dim=0, return_inverse=True)[1].masked_fill(pair[:, 1] < 0, -1) for pair in pairs]
