"""Dr.GRPO's advantage (Liu et al. 2025, "Understanding R1-Zero-like training", arXiv 2503.20783, §3.2).

    A_i = ρ_i − mean(ρ)        for every token of completion i

GRPO without the division by σ. Its other half is the loss aggregation `constant`, without the division by length.
"""

from __future__ import annotations

from rlcore.batch import Advantages, GradedBatch
from trainers.algorithm import needs
from trainers.groups import group_mean, uniform


@needs("groups")
def dr_grpo(batch: GradedBatch) -> Advantages:
    totals = batch.totals.double()
    centred = (totals - group_mean(totals, batch.group)).float()
    return Advantages(centred[:, None].expand_as(batch.tokens), uniform(totals, batch.group))
