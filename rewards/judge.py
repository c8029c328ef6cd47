"""What a reward model is to those who ask it: how likely is it that a step is right, after the steps before it?

Reward models of different makes are plugins in `rewards/judges`, one file each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.judged_text import Asked
from rlcore import plugins
from rlcore.errors import UserError
from rlcore.protocols import Progress, no_progress


class Judge(ABC):
    of_solutions = False  # True: it was made to judge whole solutions, and what it says of their steps means nothing

    @abstractmethod
    def log_odds(self, asked: Sequence[Asked], progress: Progress = no_progress) -> list[float]:
        """log P(right)/P(wrong) of each. What it is asked together with changes no answer. `progress` hears how many are done.
        Raises UserError for what is longer than the model can read."""


def load_judge(spec: str | Mapping[str, Any]) -> Judge:
    """A folder that `job: reward_model` wrote, or a plugin in `rewards/judges` with its options:
    `{name: qwen_math_prm, model: FOLDER}`."""
    fields = {"name": "trained", "model": spec} if isinstance(spec, str) else dict(spec)
    if not isinstance(fields.get("name"), str):
        raise UserError(f"judge {spec!r} has no `name`: give one of {', '.join(plugins.names('rewards.judges'))}")
    judge: Judge = plugins.bind("rewards.judges", fields.pop("name"), fields)()
    return judge
