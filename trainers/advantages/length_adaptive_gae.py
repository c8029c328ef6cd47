"""Length-adaptive GAE, as in VAPO (Yue et al. 2025, arXiv 2504.05118).

    λ_policy = 1 − 1/(α·ℓ)        for a completion of ℓ tokens in the loss;        λ_critic = 1

The weights λ^k of the TD errors after a token add up to about 1/(1 − λ) = α·ℓ: it looks ahead over the same share of a short
completion and of a long one, where one λ for all would look over so many tokens. Worked, with α = 0.05: λ = 0.8, 0.98 and 0.998
for ℓ = 100, 1000 and 10000. Up to 1/α tokens λ is 0, as the formula would be negative. The rest is that of `gae`.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from rlcore.batch import Advantages, GradedBatch
from rlcore.recipe.schema import Share
from trainers.advantages.gae import gae
from trainers.algorithm import needs


@needs("values")
def length_adaptive_gae(
    batch: GradedBatch, *, alpha: PositiveFloat = 0.05, gamma: Share = 1.0, whiten: bool = True
) -> Advantages:
    lambda_policy = 1 - 1 / (alpha * batch.loss_mask.sum(1).double()).clamp(min=1)
    return gae(batch, gamma=gamma, lambda_policy=lambda_policy, lambda_critic=1.0, whiten=whiten)
