"""GPG's advantage (Group Policy Gradient: Chu et al. 2025, arXiv 2504.02546).

    A_i = α·(ρ_i − mean(ρ)) / norm        for every token of completion i; the mean over its group

    α = number of completions / number of those whose group's rewards are not all equal

Groups of equal rewards teach nothing, but stay in the denominators of the loss; α makes up for that. Where dynamic sampling has
dropped them, α is 1. (verl's α is another number: it divides by the completions whose reward is not 0.) Worked: the groups 1, 0
and 1, 1 have α = 2, hence 1, −1, 0, 0. Goes with the loss `gpg`.

Where all groups are degenerate everything is 0.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from rlcore.batch import Advantages, GradedBatch
from trainers.advantages.dr_grpo import dr_grpo
from trainers.algorithm import needs


@needs("groups")
def gpg(batch: GradedBatch, *, norm: PositiveFloat = 1.0) -> Advantages:
    centred = dr_grpo(batch)
    telling = (~centred.degenerate).sum().clamp(min=1)
    return Advantages(centred.policy * (len(batch.group) / telling / norm), centred.degenerate)
