"""The truth about the steps of the toy world's chains, in the place of a reward model: the control of experiments."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.judge import Judge
from rewards.judged_text import Asked
from rlcore.protocols import Progress, no_progress
from rlcore.toy.world import label_steps, parse_chain

SURE = 20.0  # log-odds


class ChainTruth(Judge):
    """Raises ValueError for problems that are no chains."""

    steps_end_with = "\n"

    def log_odds(self, asked: Sequence[Asked], progress: Progress = no_progress) -> list[float | None]:
        """Of the last line of what is judged, where it stands."""
        found = [label_steps(parse_chain(each.problem), "\n".join(each.previous + each.current))[-1] for each in asked]
        progress(len(found))
        return [SURE if step.correct else -SURE for step in found]
