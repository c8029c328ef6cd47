"""OPO's advantage (Hao et al. 2025, "On-policy RL with optimal reward baseline", arXiv 2505.23585).

    A_i = ρ_i − Σ_k ℓ_k·ρ_k / Σ_k ℓ_k        for every token of completion i, the sums over its group

ℓ_k is the number of completion k's tokens in the loss. The baseline of least variance weighs each reward by the squared norm of
∇log π(y), which is taken to grow with ℓ. Worked: ρ = 1, 0 of 3 and 1 tokens have the baseline 0.75, hence 0.25 and −0.75.

A group of equal rewards gives 0 for all. A completion that is not in the loss does not count in the baseline.
"""

from __future__ import annotations

from rlcore.batch import Advantages, GradedBatch
from trainers.algorithm import needs
from trainers.groups import group_sum, uniform


@needs("groups")
def opo(batch: GradedBatch) -> Advantages:
    totals, lengths = batch.totals.double(), batch.loss_mask.sum(1).double()
    baseline = group_sum(lengths * totals, batch.group) / group_sum(lengths, batch.group).clamp(min=1)
    return Advantages((totals - baseline).float()[:, None].expand_as(batch.tokens), uniform(totals, batch.group))
