"""`rlcore.grading.refute`: values at one point tell answers apart, and never tell one from itself."""

from __future__ import annotations

from itertools import product

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcore.grading.equal import _parse
from rlcore.grading.refute import different


def apart(gold: str, answer: str) -> bool:
    return all(different(*pair) for pair in product(_parse(gold), _parse(answer)))


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("x+1", "x+2"),
        (r"2\sqrt{3}", r"\sqrt{11}"),
        ("x+1", "(x+300)!"),
        ("5", "10^{400}"),  # beyond a float
        (r"\log_2 3", "234754454"),  # algebra would raise 2 to that power
        ("(1,2)", "(1,3)"),
        ("[1,2)", "[1,5)"),
        (r"\{1,2\}", "1,3"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
        ("5", "x=6"),
        ("x=5", "6"),
        ("1+2i", "1-2i"),
        (r"\frac{1}{2}", "0.500000001"),
        ("2<x<5", r"\{2,5\}"),
        ("x>3", r"\{\exp(\log(\infty)),\exp(\log(\infty))7\}"),  # algebra says so for most hash seeds only
        ("x>3", r"x>3-\exp(\log(\infty))"),
        ("x>3", r"3<\exp(\log(\infty))<77"),
        ("y=2x+3", r"y=\exp(\log(\infty))"),
        ("5", r"\frac{1}{0}"),
        ("0", r"\infty-\infty"),
        (r"\infty", r"\infty-\infty"),
    ],
)
def test_different_values(gold: str, answer: str) -> None:
    assert apart(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("x+1", "1+x"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        ("(x+1)^2", "x^2+2x+1"),
        ("1,-2", "-2,1"),
        (r"1 \pm \sqrt{19}", r"1-\sqrt{19},1+\sqrt{19}"),
        ("x=5", "5"),
        ("5", "x=5"),
        (r"x \in [-2,7]", "[-2,7]"),
        (r"(2,\infty)", r"(2,\infty)"),
        (r"\infty", "10^{400}"),
        (r"\sin^2 x + \cos^2 x", "1"),
        ("x>3", r"(3,\infty)"),
        (r"x<\infty", r"x<\infty"),
        (r"-\infty<x<3", r"-\infty<x<3"),
        (r"\infty-\infty", r"\infty-\infty"),
        ("1", r"\sum_{k=1}^{\infty} 2^{-k}"),
        ("x>3", "x>4"),  # other relations are not its business
        ("x^2+y^2=1", "x=1"),
        (r"\text{east}", r"\text{west}"),  # nor are words
        ("5", r"(-3)!"),  # nor what has no value
        ("5", "f(x)"),
        (
            r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
            r"\begin{pmatrix} 1 \\ 2 \end{pmatrix} + \begin{pmatrix} 0 \\ 0 \end{pmatrix}",
        ),
    ],
)
def test_the_same_value_or_none(gold: str, answer: str) -> None:
    assert not apart(gold, answer)


X, Y = sympy.symbols("x y", real=True)
POLYNOMIALS = st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4).map(
    lambda terms: sympy.Add(*[a * X**i * Y**j for a, i, j in terms])
)


@given(POLYNOMIALS, POLYNOMIALS, st.integers(1, 4))
@settings(deadline=None)
def test_rewriting_never_makes_a_difference_and_another_function_does(p: sympy.Expr, q: sympy.Expr, n: int) -> None:
    """(p + q)^n expanded is itself, and is not itself plus a thousandth."""
    whole = sympy.Pow(p + q, n, evaluate=False)
    assert not different(whole, sympy.expand(whole.doit()))
    assert (
        different(whole, whole + sympy.Rational(1, 1000))
        or abs(whole.subs({X: sympy.Rational(10, 7), Y: sympy.Rational(11, 8)})) > 10**6
    )
