"""What a reward model is to those who ask it: how likely is it that a step is right, after the steps before it?

Reward models of different makes are plugins in `rewards/judges`, one file each.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rewards.judged_text import Asked
from rlcore import plugins
from rlcore.errors import UserError
from rlcore.protocols import Progress, no_progress


class Judgement(NamedTuple):
    log_odds: list[float | None]  # of each that was asked; None: it ends beyond what the judge can read
    measured: Mapping[str, list[float]] = {}  # what else the judge found of each, by name: told, and nobody is paid for it

    def of(self, which: slice) -> Judgement:
        """On some of what was asked."""
        return Judgement(self.log_odds[which], {name: values[which] for name, values in self.measured.items()})


class Judge(ABC):
    """Once made it has its facts, at little cost; what it judges with is loaded by `load`, or by the first question."""

    of_solutions = False  # True: it was made to judge whole solutions; asked about a step, it judges all up to it
    steps_end_with: str | None = None  # the separator of those it learned from; None: it takes any
    trained_on: frozenset[str] = frozenset()  # digests of problems (`rewards.trained_on`), as far as it is known

    def load(self) -> None:  # noqa: B027  # most that are no model have nothing to load
        """Raises UserError for weights of another kind of model."""

    @property
    def weights(self) -> int:
        """Bytes of what `load` loads."""
        return 0

    @abstractmethod
    def log_odds(self, asked: Sequence[Asked], progress: Progress = no_progress) -> list[float | None]:
        """log P(right)/P(wrong) of each; None of what ends beyond what it can read. What it is asked together with changes no
        answer. `progress` hears how many are done."""

    def judge(self, asked: Sequence[Asked], progress: Progress = no_progress) -> Judgement:
        """`log_odds`, with what else there is to tell."""
        return Judgement(self.log_odds(asked, progress))

    def check_separator(self, separator: str) -> None:
        """Raises UserError where texts are divided into other steps than it learned."""
        if self.steps_end_with not in (None, separator):
            raise UserError(
                f"the reward model learned steps that end with {self.steps_end_with!r}, and these end with {separator!r}: "
                f"set the separator to {self.steps_end_with!r}"
            )


def probability(log_odds: float) -> float:
    """1 / (1 + e^−z), which no z overflows."""
    return 0.5 * (1 + math.tanh(log_odds / 2))


def load_judge(spec: str | Mapping[str, Any]) -> Judge:
    """A folder that `job: reward_model` wrote, or a plugin in `rewards/judges` with its options:
    `{name: qwen_math_prm, model: FOLDER}`. Ready to judge."""
    judge = named_judge(spec)()
    judge.load()
    return judge


def named_judge(spec: str | Mapping[str, Any]) -> Callable[[], Judge]:
    """What makes it, here or in another process. Raises UserError at once for a name or an option that there is not."""
    fields = {"name": "trained", "model": spec} if isinstance(spec, str) else dict(spec)
    if not isinstance(fields.get("name"), str):
        raise UserError(f"judge {spec!r} has no `name`: give one of {', '.join(plugins.names('rewards.judges'))}")
    return plugins.bind("rewards.judges", fields.pop("name"), fields)
