"""ReMax's advantage (Li et al. 2023, "ReMax", arXiv 2310.10505).

    A_t = Σ_{s ≥ t} r_s − ρ_greedy

ρ_greedy is what the greedy completion of the same problem is worth in all. It depends on no sample, so the gradient is unbiased
with any number of samples, one included. Nothing is divided or whitened. Worked: an answer that earns 1 where the greedy one
earns 0.25 gives 0.75 at every token; one that earns 0.5 at each of two tokens 0.75, then 0.25.

A completion that earns in all what the greedy one does is counted as degenerate.
"""

from __future__ import annotations

from rlcore.batch import Advantages, GradedBatch
from trainers.algorithm import needs
from trainers.returns import rewards_to_go


@needs("greedy")
def remax(batch: GradedBatch) -> Advantages:
    assert batch.greedy is not None  # what `needs` is for
    return Advantages((rewards_to_go(batch) - batch.greedy[:, None]).float(), batch.totals == batch.greedy)
