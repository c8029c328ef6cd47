"""REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740, eq. 6).

    A_i = ρ_i − 1/(n−1) Σ_{k≠i} ρ_k = n/(n−1) · (ρ_i − mean(ρ))        for every token of completion i

The baseline does not contain the completion's own reward, so the gradient is unbiased. Worked: ρ = 1, 0, 0, 1 gives ±0.667.
"""

from __future__ import annotations

from rlcore.batch import Advantages, GradedBatch
from trainers.advantages.dr_grpo import dr_grpo
from trainers.algorithm import needs
from trainers.groups import group_size


@needs("groups")
def rloo(batch: GradedBatch) -> Advantages:
    centred, size = dr_grpo(batch), group_size(batch.group)
    return Advantages(centred.policy * (size / (size - 1)).float()[:, None], centred.degenerate)
