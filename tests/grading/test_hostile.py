"""Ten thousand completions that no sane policy writes (`hostile`), graded under a deadline of one second.

What is proved: no hang, no crash, no injected code, no excuse for the policy, and no mistake where the truth is known. What is
not: how long it takes, which the machine decides; and second tries, which `test_pool` scripts.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rlcore.grading.pool import Grader
from rlcore.types import Problem
from tests.grading.hostile import FAMILIES, GOLDS, KNOWN, strings, templates

COUNT = 10_000
AT_THE_DEADLINE = 100
REASONS = {"wrong answer", "no answer", "too long", "too deep", "not worked out", "too large", "ungradable"}


def test_they_are_ten_thousand_of_all_families() -> None:
    drawn = strings(COUNT, seed=0, canary="canary")
    assert drawn == strings(COUNT, seed=0, canary="canary")
    assert len({(completion.gold, completion.text) for completion in drawn}) > 0.95 * COUNT
    assert {completion.family for completion in drawn} == set(FAMILIES | KNOWN)
    assert {completion.gold for completion in drawn} > set(templates(GOLDS))
    assert sum(len(completion.text) > 900_000 for completion in drawn) > 20


@pytest.mark.slow
def test_ten_thousand_hostile_completions(tmp_path: Path) -> None:
    """Right ones are correct and all others wrong, for a reason that is counted; none is invalid, as the reference answers are
    sound. Few reach the deadline, and none is ungradable whose first try did not fail. In one test, so as to grade once."""
    canary = tmp_path / "canary"
    drawn = sorted(strings(COUNT, seed=0, canary=str(canary)), key=lambda completion: completion.gold)  # as in training
    problems = {completion.gold: Problem(completion.gold, "", completion.gold) for completion in drawn}
    with Grader(deadline_s=1.0) as grader:
        verdicts = grader.grade([(problems[completion.gold], completion.text, False) for completion in drawn])

    assert not canary.exists()
    mistaken = [pair for pair in zip(drawn, verdicts, strict=True) if (pair[1].kind == "correct") != pair[0].right]
    assert [(hostile.family, hostile.gold, hostile.text[:200], verdict) for hostile, verdict in mistaken] == []
    assert {verdict.kind for verdict in verdicts} == {"correct", "wrong"}
    assert {verdict.reason.partition(":")[0] for verdict in verdicts if verdict.kind == "wrong"} == REASONS
    assert set(grader.counts) == REASONS | {"correct"}
    assert grader.counts.total() == COUNT
    assert 0 < grader.failures["TimeoutError"] <= AT_THE_DEADLINE, grader.failures
    assert grader.counts["ungradable"] <= grader.failures.total()


def test_the_canary_would_have_told(tmp_path: Path) -> None:
    """One of those very strings, evaluated as Python, creates the file."""
    canary = tmp_path / "canary"
    code = f"open('{canary}','w')"
    assert f"${code}$" in {completion.text for completion in strings(COUNT, seed=0, canary=str(canary))}
    eval(code).close()
    assert canary.exists()
