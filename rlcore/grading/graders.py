"""The notions of equality that `Problem.grader` names: plain functions `(answer, problem) -> Verdict`, for `pool`.

What takes microseconds is decided `at_once`, in the calling process. What may hang is decided `at_length`, in a process that
can be killed (`workers`). "math" does both: most answers show by their spelling, the rest need algebra.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rlcore.errors import UserError, nearest
from rlcore.grading import choices, equal, limits, quantities, structured
from rlcore.grading.roles import cast
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


def gold_fault(problem: Problem) -> str:
    """Why no answer to the problem can be right, as far as that shows at once: the grader does not know the gold answer, or the
    settings beside it, as such. Empty where nothing is wrong."""
    verdict = at_once(problem.answer, problem)
    return "" if verdict is None or verdict.kind == "correct" else verdict.reason


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
    """Knights and knaves: everyone of the gold answer, `Alice is a knight, Bob is a knave`, gets the right role, exactly once.

    Order, numbering, punctuation and case do not matter. A name that is not in the gold, or a role too many, is wrong.
    """
    expected = cast(problem.answer, problem.answer)
    if expected is None:
        return _unparsable_gold(problem)
    return _verdict(cast(answer, problem.answer) == expected, answer)


def choice(answer: str, problem: Problem) -> Verdict:
    """Multiple choice: the letter or the text of the right option, and nothing else; see `rlcore.grading.choices`.

    `meta["options"]` has the texts. Without it only letters are known.
    """
    try:
        options = choices.options(problem.meta.get("options"))
    except ValueError as error:
        return _unparsable_gold(problem, error)
    expected, picked = choices.pick(problem.answer, options), choices.pick(answer, options)
    if expected is None:
        return _unparsable_gold(problem, "it is no option")
    return replace(_verdict(picked == expected, answer), answer=picked or "")


def quantity(answer: str, problem: Problem) -> Verdict:
    """A number with a unit, in any of the same kind: |answer − gold| ≤ max(abs_tol, rel_tol · |gold|), all in the gold's unit.

    `meta["rel_tol"]` and `meta["abs_tol"]` are 0 where they are missing; `meta["unit"]` is the gold's where that is a bare
    number. A bare answer is in the gold's unit. See `rlcore.grading.quantities`.
    """
    try:
        gold = quantities.read(problem.answer, str(problem.meta.get("unit") or ""))
        relative, absolute = (quantities.tolerance(problem.meta.get(name), name) for name in ("rel_tol", "abs_tol"))
    except ValueError as error:
        return _unparsable_gold(problem, error)
    if len(answer) > limits.MAX_LENGTH:
        return Verdict("wrong", "too long")
    try:
        amount = quantities.convert(quantities.read(answer), gold)
    except quantities.UnreadableError:
        return _verdict(False, answer)
    if amount is None:
        return Verdict("wrong", f"wrong unit: {answer[:80]}", answer)
    return replace(_verdict(abs(amount - gold.amount) <= max(absolute, relative * abs(gold.amount)), answer), answer=answer)


def json_value(answer: str, problem: Problem) -> Verdict:
    """The same JSON value: objects in any order of keys, lists in theirs, `1.0` and `1` alike, and not `1` and `true`."""
    try:
        expected = structured.canonical(problem.answer)
    except structured.UnreadableError as error:
        return _unparsable_gold(problem, error)
    try:
        given = structured.canonical(answer)
    except structured.UnreadableError as error:
        return Verdict("wrong", f"no JSON: {error}")
    return replace(_verdict(given == expected, given), answer=given)


def tool_calls(answer: str, problem: Problem) -> Verdict:
    """The same calls in any order: names, and arguments as JSON values. What is not quite right has ToolRL's credit; see
    `rlcore.grading.structured`."""
    try:
        expected = structured.calls(problem.answer)
    except structured.UnreadableError as error:
        return _unparsable_gold(problem, error)
    try:
        credit = structured.credit(expected, structured.calls(answer))
    except structured.UnreadableError as error:
        return Verdict("wrong", f"no tool calls: {error}")
    return replace(_verdict(credit == 1, answer), credit=credit)


def gym(answer: str, problem: Problem) -> Verdict:
    """Reasoning Gym's own check: `meta["task"]` scores the answer to `meta["entry"]`; full marks (≥ 0.999) are correct, and its
    score is the credit.

    Many checks turn their own failures into a low score, so one that gives the gold answer a low score too is not believed.
    Raises UserError where the package is missing.
    """
    check = _gym_check(problem.meta["task"], json.dumps(problem.meta.get("config", {}), sort_keys=True))
    score, on_gold = (check(text, problem.meta["entry"]) for text in (answer, problem.answer))
    if problem.answer and max(score, on_gold) < FULL_MARKS:
        return Verdict("invalid", f"gold answer refused by the check of {problem.meta['task']}")
    return replace(_verdict(score >= FULL_MARKS, answer), credit=min(max(float(score), 0.0), 1.0))


@functools.cache
def _gym_check(task: str, config: str) -> Callable[[str, Mapping[str, Any]], float]:
    """The task's check under the configuration its problems were made with: some checks read it."""
    try:
        from reasoning_gym import create_dataset
    except ImportError as error:
        raise UserError("the grader 'gym' needs the package reasoning-gym: pip install 'rlcore[cpu]'") from error
    score: Callable[[str, Mapping[str, Any]], float] = create_dataset(task, **json.loads(config)).score_answer
    return score


FULL_MARKS = 0.999
AT_ONCE: dict[str, Callable[[str, Problem], Verdict | None]] = {
    "math": math_by_spelling,
    "exact": exact,
    "roles": roles,
    "choice": choice,
    "quantity": quantity,
    "json": json_value,
    "tool_calls": tool_calls,
}
AT_LENGTH: dict[str, Callable[[str, Problem], Verdict]] = {"math": math_by_value, "gym": gym}
LIBRARIES = {"math": "rlcore.grading.warm", "gym": "reasoning_gym"}  # imported before the first answer: it takes seconds


def _verdict(same: bool, answer: str) -> Verdict:
    return Verdict("correct") if same else Verdict("wrong", f"wrong answer: {answer[:80]}")


def _unparsable_gold(problem: Problem, why: object = "") -> Verdict:
    return Verdict("invalid", f"gold answer unparsable: {problem.answer[:80]}" + (f" ({why})" if why else ""))
