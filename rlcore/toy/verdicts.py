"""What an annotator of the toy world says of a solution, step by step.

Of every step, what is true of it (`world.label_steps`). Or, as in PRM800K, where nobody judges what follows an error: nothing
of steps that are false while the one before them is, until one is true again. Those are hard to judge, as an error anywhere
before makes them wrong, and teach a reward model that plain steps mostly are.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlcore.data.steps import StepLabel
from rlcore.toy import world


def verdicts(problem: str, steps: Sequence[str], *, inherited: bool) -> tuple[StepLabel | None, ...]:
    """One for each line of the steps. `inherited`: whether errors that follow an error are judged. Raises ValueError for a
    problem that is no chain."""
    truths = [step.correct for step in world.label_steps(world.parse_chain(problem), "\n".join(steps))]
    before = [True, *truths[:-1]]
    return tuple(
        "correct" if true else "wrong" if inherited or sound else None for true, sound in zip(truths, before, strict=True)
    )
