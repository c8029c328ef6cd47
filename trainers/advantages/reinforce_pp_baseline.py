"""The advantage of REINFORCE++ with a baseline (Hu et al. 2025, arXiv 2501.03262).

    c_i = ρ_i − mean(ρ)        the mean over its group
    A_i = (c_i − mean(c)) / std(c)        for every token of completion i; these over all tokens of the batch in the loss

GRPO with one σ for all problems, so that none has more weight for being hard or easy. Worked: ρ = 1, 0, one token each, gives
±0.707.

mean(c) is over tokens and so is not 0 where the better completions are longer or shorter than the others: then also a group of
equal rewards, which is counted as degenerate, is pushed a little. A batch of such groups alone gives 0.
"""

from __future__ import annotations

from rlcore.batch import Advantages, GradedBatch
from trainers.advantages.dr_grpo import dr_grpo
from trainers.algorithm import needs
from trainers.whiten import whitened


@needs("groups")
def reinforce_pp_baseline(batch: GradedBatch) -> Advantages:
    centred = dr_grpo(batch)
    return Advantages(whitened(centred.policy, batch.loss_mask), centred.degenerate)
