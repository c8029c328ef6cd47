"""What a policy that learned from preferences finds an answer worth, by its log-probs.

    r(x, y) = scale · [Σ_t log π(y_t | x, y_<t) − Σ_t log π_ref(y_t | x, y_<t)] / |y|

without the reference where it is not `relative`, and without |y|, the number of tokens, where it is not `averaged`: all as in
the loss that it learned by (`trainers.preference.losses`). How it is asked, and which π_ref is, is kept beside its weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from rlcore.recipe.schema import Prompt

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


@dataclass(frozen=True)
class Start:
    """The model that training started from: its folder or hub id, and the SHA-256 of its weights."""

    location: str
    digest: str


@dataclass(frozen=True)
class ImplicitRewardModel:
    """How a policy of `job: preference` is read as a reward model: as it was taught."""

    reward: ImplicitReward
    prompt: Prompt
    reference: Start | None  # None where the reward is not relative

    def save(self, folder: Path) -> None:
        fields = asdict(self) | {"prompt": self.prompt.model_dump()}
        (folder / FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def load_implicit_reward_model(folder: Path) -> ImplicitRewardModel:
    """What `save` left in a checkpoint's folder."""
    fields = json.loads((folder / FILE).read_text(encoding="utf-8"))
    reference = fields["reference"] and Start(**fields["reference"])
    return ImplicitRewardModel(ImplicitReward(**fields["reward"]), Prompt(**fields["prompt"]), reference)
