"""`rlcore.grading.limits`: what is refused before algebra, that no sane answer is, and that `bits` is no underestimate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcore.grading.equal import TooLargeError, _parse, same_value
from rlcore.grading.graders import at_length
from rlcore.grading.limits import MAX_BITS, bits, oversized
from rlcore.types import Problem, Verdict


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("1+" * 300 + "1", "too long"),
        ("(" * 9 + "1" + ")" * 9, "too deep"),
        ("(" * 9, "too deep"),
        (r"\lfloor " * 9 + "1" + r"\rfloor " * 9, "too deep"),
        ("|" * 9 + "1" + "|" * 9, "too deep"),
        ("(" * 8 + "1" + ")" * 8, None),
        ("(1)" * 30, None),
        (r"|x|+|y|+|z|", None),
        (r"\sum_{k=1}^{10} k", "not worked out"),
        (r"\int_0^1 x dx", "not worked out"),
        (r"\iint x", "not worked out"),
        (r"\lim_{x \to 0} x", "not worked out"),
        (r"\operatorname{rank}(x)", "not worked out"),
        (r"\begin{vmatrix} 1 \end{vmatrix}", "not worked out"),
        (r"\left\|x\right\|", "not worked out"),
        (r"\frac{d}{dx} x", "not worked out"),
        (r"\binom{100000}{2}", "too large"),
        (r"\binom{10^{10}}{2}", "too large"),
        ("1E99999", "too large"),
        ("1E99", None),
        (r"\binom{10}{3} x^2", None),
        (r"\operatorname{arctan}(2)", None),
        (r"\limits x", None),
        (r"\Gamma(\frac{1}{3})", None),
    ],
)
def test_oversized(answer: str, reason: str | None) -> None:
    assert oversized(answer, "5") == reason


@pytest.mark.parametrize(
    "gold", ["1+" * 300 + "1", "(" * 9 + "1" + ")" * 9, "|" * 18, r"\sum_{k=1}^{n} k", r"\binom{10^{10}}{2}"]
)
def test_what_the_reference_answer_has_an_answer_may_have(gold: str) -> None:
    assert oversized(gold + "+1", "5") is not None
    assert oversized(gold + "+1", gold) is None


@pytest.mark.parametrize(
    ("answer", "least", "most"),
    [
        ("5", 1, 10),
        ("2^{4950}", 4951, MAX_BITS),
        (r"(x+1)^{100}", 100, MAX_BITS),
        ("100!", 525, MAX_BITS),
        (r"\binom{2016}{2}", 1, MAX_BITS),
        (r"e^{100}", 145, MAX_BITS),
        ("9^{9^{9}}", 10**9, float("inf")),
        ("x^{x^{99}}", 10**9, float("inf")),
        (r"\frac{1}{9^{9^{9}}}", 10**9, float("inf")),
        (r"(1, 9^{9^{9}})", 10**9, float("inf")),
        ("x < 9^{9^{9}}", 10**9, float("inf")),
        (r"\begin{pmatrix} 1 \\ 9^{9^{9}} \end{pmatrix}", 10**9, float("inf")),
        ("(9!)!", 10**6, float("inf")),
        ("(x+30000)!", 10**5, float("inf")),
        ("5" + "!" * 40, 10**9, float("inf")),
        ("1E4000", 13_000, float("inf")),
    ],
)
def test_bits(answer: str, least: float, most: float) -> None:
    """At least what the value takes; at most what is refused, for values that can be had."""
    assert least <= sum(map(bits, _parse(answer))) <= most


NUMBERS = st.integers(-20, 20).map(sympy.Integer) | st.builds(sympy.Rational, st.integers(-20, 20), st.integers(1, 20))
TREES = st.recursive(
    NUMBERS,
    lambda tree: (
        st.builds(lambda a, b: sympy.Add(a, b, evaluate=False), tree, tree)
        | st.builds(lambda a, b: sympy.Mul(a, b, evaluate=False), tree, tree)
        | st.builds(lambda a, n: sympy.Pow(a, n, evaluate=False), tree, st.integers(0, 6))
        | st.builds(lambda n: sympy.factorial(n, evaluate=False), st.integers(0, 30))
    ),
    max_leaves=6,
)


@given(TREES)
@settings(deadline=None)
def test_bits_are_no_underestimate(tree: sympy.Expr) -> None:
    """Up to the carries of the additions, of which there are fewer than leaves."""
    value = sympy.Rational(tree.doit())
    assert max(value.p.bit_length(), value.q.bit_length()) <= bits(tree) + 6


def test_too_large_is_wrong_unless_the_reference_answer_is_as_large() -> None:
    assert at_length("9^{9^{9}}", Problem("p", "", "5")) == Verdict("wrong", "too large")
    assert at_length("x^{20001}", Problem("p", "", "x^{2000}")) == Verdict("wrong", "too large")
    assert at_length("x^{20000}", Problem("p", "", r"x^{19999} \cdot x")) == Verdict("correct")
    with pytest.raises(TooLargeError):
        same_value("5", "9^{9^{9}}")


def test_no_real_answer_is_refused(data_dir: Path) -> None:
    """Not the 8000 of MATH's for a reference answer that is much smaller."""
    answers = [json.loads(line)["answer"] for line in (data_dir / "math500_test.jsonl").read_text().splitlines()]
    distinct = set(answers)
    answers += [row["final_answer"] for row in json.loads((data_dir / "math_train.json").read_text())]
    assert len(answers) == 8000
    assert [answer for answer in answers if oversized(answer, "5")] == []
    assert max(sum(map(bits, _parse(answer))) for answer in distinct if not answer.isdigit()) < MAX_BITS / 20
