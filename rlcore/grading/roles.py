"""Reads who is a knight and who is a knave, by Logic-RL's strict rules (Xie et al. 2025, arXiv 2502.14768). Serves `graders`.

An answer is `NAME is a ROLE` for each person of the puzzle, in any order and with anything between. It names as many roles as
there are people, so that nobody hedges: `Alice is a knight, or both are knaves` names two for one.
"""

from __future__ import annotations

import re

ROLES = ("knight", "knave")


def cast(answer: str, gold: str) -> dict[str, str] | None:
    """Everyone's role by the answer; None where it is no answer to the puzzle that `gold` solves. What solves no puzzle either
    is no answer to itself: `cast(gold, gold)` is None."""
    expected, said = dict(_assignments(gold)), _assignments(answer)
    text = answer.casefold()
    mentioned = sum(text.count(role) for role in {*ROLES, *expected.values()})
    is_answer = mentioned == len(said) == len(expected) > 0 and dict(said).keys() == expected.keys()
    return dict(said) if is_answer else None


def _assignments(text: str) -> list[tuple[str, str]]:
    """Every `NAME is a ROLE` in the text, as (name, role)."""
    words = re.findall(r"[\w'-]+", text.casefold().replace("_", " "))
    return [(words[i - 1], words[i + 2]) for i in range(1, len(words) - 2) if words[i] == "is" and words[i + 1] in ("a", "an")]
