"""DPO: Rafailov et al. 2023, arXiv 2305.18290, eq. 7.

    r(x, y) = β · log π(y|x) / π_ref(y|x)        L = −log σ(r(x, y_w) − r(x, y_l))

With β = 0.1 and log-ratios of 2 and −1 the margin is 0.3, and the loss −log σ(0.3) = 0.554.
"""

from __future__ import annotations

from pydantic import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from rewards.implicit_reward import ImplicitReward
from trainers.preference.objective import PreferenceLoss


class Dpo(PreferenceLoss):
    """`beta`: how dear it is to leave the reference."""

    def __init__(self, *, beta: PositiveFloat = 0.1) -> None:
        self.reward = ImplicitReward(beta, relative=True, averaged=False)

    def __call__(self, margin: Tensor) -> Tensor:
        return -logsigmoid(margin)
