"""Soft Adaptive Policy Optimization (Gao et al. 2025, arXiv 2511.20347).

    L = −A·σ(τ·(r − 1))·4/τ        per token, r = π / π_old;  τ = τ⁺ where A > 0, τ⁻ elsewhere
    ∂L/∂log π = −A·4σ(1 − σ)·r     with σ at τ·(r − 1)

A gate in the place of PPO's clip: at r = 1, σ = 1/2 and the gradient is −A·∇log π; away from there it fades, without an edge,
the sooner the larger τ. Worked, at r = 1: A = 2, τ = 1 gives −4 with gradient −2. The authors use it with
`aggregate: sequence_mean`.
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat

from rlcore.run.metrics import Max
from trainers.objective import Loss, LossInputs
from trainers.ratio import log_ratio


def sapo(inputs: LossInputs, *, temperature_positive: PositiveFloat = 1.0, temperature_negative: PositiveFloat = 1.05) -> Loss:
    """`temperature_positive` and `temperature_negative`: τ⁺ and τ⁻."""
    ratio = log_ratio(inputs).exp()
    temperature = torch.where(inputs.advantages > 0, temperature_positive, temperature_negative)
    gate = torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature
    return Loss(-inputs.advantages * gate, {"ratio/max": Max((ratio * inputs.loss_mask).max().item())})
