"""What a policy that learned from preferences finds an answer worth, by its log-probs; kept beside its weights.

    r(x, y) = scale · [Σ_t log π(y_t | x, y_<t) − Σ_t log π_ref(y_t | x, y_<t)] / |y|

without the reference where it is not `relative`, and without |y|, the number of tokens, where it is not `averaged`: all as in
the loss that it learned by (`trainers.preference.losses`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

FILE = "implicit_reward.json"


@dataclass(frozen=True)
class ImplicitReward:
    scale: float
    relative: bool
    averaged: bool

    def __call__(self, logprobs: Tensor, reference: Tensor | None, mask: Tensor) -> Tensor:
        """(b,) from (b, t) log-probs of the answers' tokens, and the mask of these; (b, …) where log-probs are (b, …, t)."""
        if self.relative:
            assert reference is not None
            logprobs = logprobs - reference
        summed = (logprobs * mask).sum(-1)
        return self.scale * (summed / mask.sum(-1) if self.averaged else summed)

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


def load_implicit_reward(folder: Path) -> ImplicitReward:
    return ImplicitReward(**json.loads((folder / FILE).read_text(encoding="utf-8")))
