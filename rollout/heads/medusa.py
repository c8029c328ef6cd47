"""Medusa (Cai et al. 2024, arXiv 2401.10774): a residual block for each step on the target's last hidden state,

    h̃_{n+i} = h_n + SiLU(W_i h_n + b_i)

with W_i and b_i zero at first. The target's LM head reads them all, where the paper's heads have one each: so they have as many
parameters as a linear map, k (H² + H), which is what they are the baseline of.
"""

from __future__ import annotations

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import PretrainedConfig

from rollout.decoding.heads import Pointwise


class Medusa(Pointwise):
    def __init__(self, config: PretrainedConfig, *, steps: PositiveInt = 3) -> None:
        super().__init__(config, steps)
        self.maps = nn.ModuleList(nn.Linear(self.width, self.width) for _ in range(steps))
        for parameter in self.maps.parameters():
            nn.init.zeros_(parameter)

    def ahead(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        return torch.stack([wide + silu(each(wide)) for each in self.maps], -2).to(hidden.dtype)
