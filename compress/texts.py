"""Problems and their solutions as tokens: what methods are calibrated on, and models are measured by."""

from __future__ import annotations

from collections.abc import Sequence

from compress.measure import Text
from rlcore.data.mixture import load as load_problems
from rlcore.errors import UserError
from rlcore.prompts import Prompter
from rlcore.recipe.schema import Source
from rlcore.types import Problem

ANSWER = "#### "  # what GSM8K writes before an answer


def texts_of(sources: Sequence[Source], prompter: Prompter) -> list[Text]:
    """Raises UserError for a problem without a solution."""
    return [_text(problem, prompter) for problem in load_problems(sources)] if sources else []


def described(texts: Sequence[Text]) -> str:
    return f"held out: {len(texts)} problems with solutions, {sum(len(text.ids) for text in texts)} tokens"


def _text(problem: Problem, prompter: Prompter) -> Text:
    """With the answer at the end, in GSM8K's format."""
    solution = problem.meta.get("solution")
    if not solution:
        raise UserError(f"problem {problem.id} has no solution: calibration and evaluated_on take sources with solutions")
    told = str(solution) if ANSWER in str(solution) else f"{solution}\n{ANSWER}{problem.answer}"
    return Text(prompter.render(problem), prompter.complete(told))
