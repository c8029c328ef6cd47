"""The notions of equality that `Problem.grader` names: plain functions `(answer, problem) -> Verdict`, for `pool`.

What takes microseconds is decided `at_once`, in the calling process. What may hang is decided `at_length`, in a process that
can be killed (`workers`). "math" does both: most answers show by their spelling, the rest need algebra.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from rlcore.errors import UserError, nearest
from rlcore.grading import equal, limits
from rlcore.types import Problem, Verdict


def at_once(answer: str, problem: Problem) -> Verdict | None:
    """The verdict, or None where only `at_length` can tell. Raises UserError for a grader that does not exist."""
    if problem.grader not in AT_ONCE | AT_LENGTH:
        known = nearest(problem.grader, sorted(AT_ONCE | AT_LENGTH))
        raise UserError(f"problem {problem.id}: there is no grader {problem.grader!r}{known}")
    return AT_ONCE[problem.grader](answer, problem) if problem.grader in AT_ONCE else None


def at_length(answer: str, problem: Problem) -> Verdict:
    """The verdict of the part of the grader that may hang, eat memory or raise."""
    return AT_LENGTH[problem.grader](answer, problem)


def math_by_spelling(answer: str, problem: Problem) -> Verdict | None:
    """Mathematical equality with `problem.answer`, as far as the spelling shows it; see `rlcore.grading.equal`."""
    if refusal := limits.oversized(answer, problem.answer):
        return Verdict("wrong", refusal)
    same = equal.same_spelling(problem.answer, answer)
    return None if same is None else _verdict(same, answer)


def math_by_value(answer: str, problem: Problem) -> Verdict:
    """Mathematical equality with `problem.answer`, by algebra."""
    try:
        return _verdict(equal.same_value(problem.answer, answer), answer)
    except equal.UnparsableGoldError:
        return _unparsable_gold(problem)
    except equal.TooLargeError:
        return Verdict("wrong", "too large")


def exact(answer: str, problem: Problem) -> Verdict:
    """The same string, apart from surrounding whitespace."""
    return _verdict(answer.strip() == problem.answer.strip(), answer)


def roles(answer: str, problem: Problem) -> Verdict:
    """Knights and knaves: each name of the gold answer, `Alice is a knight, Bob is a knave`, gets its role, exactly once.

    Order, numbering, punctuation and case do not matter. A name that is not in the gold, or a role too many, is wrong.
    """
    expected = dict(_assignments(problem.answer))
    if not expected:
        return _unparsable_gold(problem)
    known = {"knight", "knave", *expected.values()}
    mentioned = sum(word in known for word in _words(answer))
    assigned = _assignments(answer)
    return _verdict(mentioned == len(assigned) == len(expected) and dict(assigned) == expected, answer)


def gym(answer: str, problem: Problem) -> Verdict:
    """Reasoning Gym's own check: `meta["task"]` scores the answer to `meta["entry"]`; full marks (≥ 0.999) are correct.

    Many checks turn their own failures into a low score, so one that gives the gold answer a low score too is not believed.
    Raises UserError where the package is missing.
    """
    score = _gym_check(problem.meta["task"], json.dumps(problem.meta.get("config", {}), sort_keys=True))
    passes = [score(text, problem.meta["entry"]) >= 0.999 for text in (answer, problem.answer)]
    if problem.answer and not any(passes):
        return Verdict("invalid", f"gold answer refused by the check of {problem.meta['task']}")
    return _verdict(passes[0], answer)


@functools.cache
def _gym_check(task: str, config: str) -> Callable[[str, Mapping[str, Any]], float]:
    """The task's check under the configuration its problems were made with: some checks read it."""
    try:
        from reasoning_gym import create_dataset
    except ImportError as error:
        raise UserError("the grader 'gym' needs the package reasoning-gym: pip install 'rlcore[cpu]'") from error
    score: Callable[[str, Mapping[str, Any]], float] = create_dataset(task, **json.loads(config)).score_answer
    return score


AT_ONCE: dict[str, Callable[[str, Problem], Verdict | None]] = {"math": math_by_spelling, "exact": exact, "roles": roles}
AT_LENGTH: dict[str, Callable[[str, Problem], Verdict]] = {"math": math_by_value, "gym": gym}
LIBRARIES = {"math": "rlcore.grading.warm", "gym": "reasoning_gym"}  # imported before the first answer: it takes seconds


def _verdict(same: bool, answer: str) -> Verdict:
    return Verdict("correct") if same else Verdict("wrong", f"wrong answer: {answer[:80]}")


def _unparsable_gold(problem: Problem) -> Verdict:
    return Verdict("invalid", f"gold answer unparsable: {problem.answer[:80]}")


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.casefold().replace("_", " "))


def _assignments(text: str) -> list[tuple[str, str]]:
    """Every `NAME is a ROLE` in the text, as (name, role)."""
    words = _words(text)
    return [(words[i - 1], words[i + 2]) for i in range(1, len(words) - 2) if words[i] == "is" and words[i + 1] in ("a", "an")]
