"""Soft Adaptive Policy Optimization (Gao et al. 2025, arXiv 2511.20347).

    L = −A·σ(τ·(r − 1))·4/τ        per token, r = π / π_old;  τ = τ⁺ where A > 0, τ⁻ elsewhere
    ∂L/∂log π = −A·4σ(1 − σ)·r     with σ at τ·(r − 1)

A gate in the place of PPO's clip: at r = 1, σ = 1/2 and the gradient is −A·∇log π; away from there it fades, without an edge,
the sooner the larger τ. Worked, at r = 1: A = 2, τ = 1 gives −4 with gradient −2. The authors use it with
`aggregate: sequence_mean`.
"""

from __future__ import annotations

import torch

from rlcore.errors import UserError
from rlcore.run.metrics import Max
from trainers.losses.ppo_clip import log_ratio
from trainers.objective import Loss, LossInputs


class Sapo:
    """`temperature_positive` and `temperature_negative`: τ⁺ and τ⁻. Raises UserError unless they are above 0."""

    def __init__(self, *, temperature_positive: float = 1.0, temperature_negative: float = 1.05) -> None:
        for name, value in (("positive", temperature_positive), ("negative", temperature_negative)):
            if not value > 0:
                raise UserError(f"sapo: temperature_{name} must be above 0, not {value:g}")
        self._positive, self._negative = temperature_positive, temperature_negative

    def __call__(self, inputs: LossInputs) -> Loss:
        ratio = log_ratio(inputs).exp()
        temperature = torch.where(inputs.advantages > 0, self._positive, self._negative)
        gate = torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature
        return Loss(-inputs.advantages * gate, {"ratio/max": Max((ratio * inputs.loss_mask).max().item())})
