"""SimPO: Meng et al. 2024, arXiv 2405.14734, eq. 6. No reference model.

    r(x, y) = β · log π(y|x) / |y|        L = −log σ(r(x, y_w) − r(x, y_l) − γ)

γ is how far the better answer shall be ahead. With β = 2, γ = 0.5 and mean log-probs of −0.5 and −1 the margin is 1, and the
loss −log σ(0.5) = 0.474.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from rewards.implicit_reward import ImplicitReward
from trainers.preference.objective import PreferenceLoss


class Simpo(PreferenceLoss):
    """`beta` scales the mean log-probs; `gamma` is γ, in units of the scaled ones."""

    def __init__(self, *, beta: PositiveFloat = 2.0, gamma: NonNegativeFloat = 0.5) -> None:
        self.reward = ImplicitReward(beta, relative=False, averaged=True)
        self.gamma = gamma

    def __call__(self, margin: Tensor) -> Tensor:
        return -logsigmoid(margin - self.gamma)
