"""The page docs/grading.md (`agreement`) and the oracle behind one of its columns (`prm800k_rules`).

That the oracle is PRM800K's is checked on what its description says, case by case; not against the original code.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.grading.agreement import EXPLANATIONS, PAGE, PAIRS, REWRITINGS, judge, pairs, render
from tests.grading.prm800k_rules import grade_answer


def test_the_page(data_dir: Path) -> None:
    """Our verdict is right on each pair; each kind of disagreement has its explanation, none is left over; and the page is what
    the command writes. In one test, so as to grade once."""
    judged = judge(pairs(data_dir))
    assert len(judged) == PAIRS
    assert {pair.kind for pair in judged} == set(REWRITINGS)
    assert [pair for pair in judged if pair.verdicts["ours"] != pair.same] == []
    explained = {(grader, kind) for grader, kinds in EXPLANATIONS.items() for kind in kinds}
    assert {(grader, pair.kind) for pair in judged for grader in pair.disagreements()} == explained
    assert PAGE.read_text() == render(judged), "run: python -m tests.grading.agreement"


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("5", "5.0", True),
        ("5", "", False),
        ("5", "-5", False),
        ("5", "5%", True),
        ("5", "5 cm", True),
        ("1080", "1,080", True),
        ("X", "x", True),
        (r"\text{east}", "East", True),
        (r"90^\circ", "90", True),
        ("7 3/4", "31/4", True),  # a mixed number is a sum
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac{1}{2}", r"\frac{2}{4}", False),  # two plain fractions: the same string
        ("5", "10/2", False),  # one integer: no sympy
        ("(1,2)", "[1,2]", False),
        ("(1,2)", "(1,2,3)", False),
        ("(1,2)", "(1.0,2)", True),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        ("2x+3", "3+2x", True),
        ("a+b+c", "c+b+a", False),  # three letters
        ("x^{12}", "x^{12}+0", False),  # a long exponent
    ],
)
def test_the_oracle_follows_the_description(gold: str, answer: str, same: bool) -> None:
    assert grade_answer(answer, gold) is same
