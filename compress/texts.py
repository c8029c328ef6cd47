"""Problems and their solutions as tokens: what methods are calibrated on, and models are measured by."""

from __future__ import annotations

from collections.abc import Sequence

from compress.measure import Text
from rlcore.data.mixture import load as load_problems
from rlcore.errors import UserError
from rlcore.prompts import Prompter
from rlcore.recipe.schema import Source
from rlcore.types import Problem


def texts_of(sources: Sequence[Source], prompter: Prompter, context: int | None = None) -> list[Text]:
    """As they would be trained on. Raises UserError for a problem without a solution, and for one that is longer than the
    model's `context`, if that is given."""
    problems = load_problems(sources) if sources else []
    found = [_text(problem, prompter) for problem in problems]
    for problem, text in zip(problems, found, strict=True):
        if context is not None and len(text.ids) > context:
            raise UserError(f"problem {problem.id} has {len(text.ids)} tokens, and the model's context allows {context}")
    return found


def described(texts: Sequence[Text]) -> str:
    return f"held out: {len(texts)} problems with solutions, {sum(len(text.ids) for text in texts)} tokens"


def _text(problem: Problem, prompter: Prompter) -> Text:
    solution = problem.meta.get("solution")
    if not solution:
        raise UserError(f"problem {problem.id} has no solution: calibration and evaluated_on take sources with solutions")
    return Text(prompter.render(problem), prompter.complete(str(solution), ends=not problem.meta.get("unfinished")))
