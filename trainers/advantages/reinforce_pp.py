"""REINFORCE++'s advantage (Hu et al. 2025, arXiv 2501.03262).

    G_t = Σ_{s ≥ t} γ^{s−t} r_s,        A_t = (G_t − mean(G)) / std(G)

mean and std are over all tokens of the batch that are in the loss (`trainers.whiten`): completions are compared with those of
all problems, so one a problem is enough, and hard problems are pushed down as a whole. Meant to be used with the KL penalty
inside the reward. Worked: ρ = 1, 0, one token each, gives ±0.707; of 3 tokens and 1, 0.5 at each of the three and −1.5.

Where every completion of the batch has the same reward, all count as degenerate; with γ = 1 and one reward each, they get 0.
"""

from __future__ import annotations

import torch

from rlcore.batch import Advantages, GradedBatch
from rlcore.recipe.schema import Share
from trainers.groups import uniform
from trainers.returns import rewards_to_go
from trainers.whiten import whitened


def reinforce_pp(batch: GradedBatch, *, gamma: Share = 1.0) -> Advantages:
    everyone = torch.zeros_like(batch.group)
    return Advantages(whitened(rewards_to_go(batch, gamma), batch.loss_mask), uniform(batch.totals, everyone))
