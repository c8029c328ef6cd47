"""For rewards that pay right completions otherwise than wrong ones (`Reward.reads_accuracy`)."""

from __future__ import annotations

from collections.abc import Sequence

from rlcore.errors import UserError
from rlcore.types import Group


def known_accuracy(name: str, group: Group) -> Sequence[float]:
    """Of the completions that could be verified: of all that a reward is asked to score (`rewards.compose.scored`). Raises
    UserError, for the reward of this name, where nothing was verified."""
    if len(group.accuracy) != len(group.completions):
        raise UserError(f"{name} reads which completions are correct, and no reward component is verifiable: add `answer`")
    return [accuracy for accuracy in group.accuracy if accuracy is not None]
