"""GRPO's group-relative advantage (Shao et al. 2024, DeepSeekMath, arXiv 2402.03300, §4.1.2).

    A_i = (ρ_i − mean(ρ)) / (std(ρ) + ε)        for every token of completion i

ρ_i is the completion's summed reward; mean and the unbiased std are over its group. Worked: ρ = 1, 0, 0, 1 gives ±0.866.

Dividing by σ gives hard and easy problems (small σ) more weight than those in between: the difficulty bias that Dr.GRPO
removes. A group of equal rewards gives 0 for all, and is counted as degenerate.
"""

from __future__ import annotations

from rlcore.batch import Advantages, GradedBatch
from rlcore.recipe.schema import NonNegativeFloat
from trainers.advantages.dr_grpo import dr_grpo
from trainers.algorithm import needs
from trainers.groups import group_std


@needs("groups", "kl_in_loss")
def grpo(batch: GradedBatch, *, epsilon: NonNegativeFloat = 1e-6) -> Advantages:
    centred = dr_grpo(batch)
    deviation = centred.policy[:, 0].double()
    normalised = (deviation / (group_std(deviation, batch.group) + epsilon)).float()
    return Advantages(normalised[:, None].expand_as(batch.tokens), centred.degenerate)
