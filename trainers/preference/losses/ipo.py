"""IPO: Azar et al. 2023, arXiv 2310.12036, eq. 17, with log-ratios averaged over an answer's tokens.

    r(x, y) = log [π(y|x) / π_ref(y|x)] / |y|        L = (r(x, y_w) − r(x, y_l) − 1 / (2β))²

The margin is drawn to 1 / (2β) and not beyond, so pairs that are always decided alike do not drive the policy away from its
reference. The paper sums over tokens; its authors average, and so does TRL. β (the paper's τ) is in units of the average: with
β = 0.1 the margin that is aimed at is 5 nats a token; for margins of 4 and 5.5 the losses are 1 and 0.25.
"""

from __future__ import annotations

from pydantic import PositiveFloat
from torch import Tensor

from rewards.implicit_reward import ImplicitReward
from trainers.preference.objective import PreferenceLoss


class Ipo(PreferenceLoss):
    """`beta`: half of one over the margin that is aimed at."""

    def __init__(self, *, beta: PositiveFloat = 0.1) -> None:
        self.reward = ImplicitReward(1.0, relative=True, averaged=True)
        self.target = 1 / (2 * beta)

    def __call__(self, margin: Tensor) -> Tensor:
        return (margin - self.target) ** 2
