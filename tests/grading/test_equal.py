r"""`rlcore.grading.equal` and the graders in `graders`: what counts as the same answer, and what must not.

`equal` here is spelling first, then algebra, in this process. Hanging answers, and the limits on them, are `test_pool`'s.
"""

from __future__ import annotations

import json
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.errors import UserError
from rlcore.grading.equal import UnparsableGoldError, normalise, same_spelling, same_value
from rlcore.grading.graders import at_length, at_once
from rlcore.types import Problem


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("18", "18"),
        ("18", "18."),
        ("18", " $18$ "),
        ("18", r"\(18\)"),
        ("18", "18.00"),
        ("18", "+18"),
        ("18", "018"),
        ("18", "**18**"),
        ("18", "$18.00"),
        ("18", "18 dollars"),
        ("18", "18 eggs per day"),
        ("18", r"18\text{ dollars}"),
        ("18", r"18\ \mathrm{cm}^2"),
        ("18", "18cm"),
        ("30", r"30^\circ"),
        ("30", r"30^{\circ}"),
        ("30", "30°"),
        ("-5", "−5"),
        ("1000", "1,000"),
        (r"11,\! 111,\! 100", "11111100"),
        ("1000", "1{,}000"),
        (r"\$32,\!348", "32348"),
        (".5", "0.50"),
        ("0.5", r"\frac12"),
        ("0.5", r"\dfrac{1}{2}"),
        ("1/2", r"\tfrac{2}{4}"),
        (r"-\frac{1}{2}", "-0.5"),
        (r"1\frac{4}{5}", "1.8"),
        ("3.5", "3 1/2"),
        ("-3 1/2", "-3.5"),
        (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}"),
        (r"\frac 59", r"\frac{5}{9}"),
        (r"11\sqrt2", r"11 \sqrt{2}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        ("4210_{5}", "4210_5"),
        ("52_8", "52"),
        (r"50\%", "50%"),
        (r"50\%", "50 percent"),
        (r"50\%", "50"),
        (r"\text{east}", "East"),
        (r"\text{(C)}", "C"),
        (r"\text{(C)}", r"\textbf{(C)}"),
        (r"x \in [-2,7]", r"x\in[-2,7]"),
        (r"\pi", "pi"),
        ("x^2", "x**2"),
    ],
)
def test_the_same_by_spelling(gold: str, answer: str) -> None:
    """One answer, written in two ways, needs no algebra."""
    assert same_spelling(gold, answer) is True


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("18", "19"),
        ("18", "1.8"),
        ("18", ""),
        ("", ""),
        ("1/3", "0.333333"),
        ("0.0000672", "0.0000671"),
        ("31/2", "3 1/2"),
        ("2", "3 1/2"),  # math-verify reads 3 + 1 over 2
        ("3", "1 2"),  # math-verify reads 1 + 2
        ("5", "5%"),
        ("0.05", "5%"),
        ("50%", "0.5"),
        ("5", r"5\text{ pct}"),
        ("(1,2)", "[1,2]"),
        ("(2,1)", "[2,1]"),  # math-verify takes both for a tuple
        ("(1,2]", "(1,2)"),
        ("(3,4]", "[3,4]"),
        ("(1,2)", r"\{1,2\}"),
        (r"\{1,2\}", "(1,2)"),
        (r"\left(1,\frac{\pi}{2}\right)", r"[1,\frac{\pi}{2}]"),
        ("X", "x"),
        ("3R^2", "3r^2"),
        ("52_8", "52_9"),
        ("52_8", "53"),
        (r"\text{tea}", "eat"),
        (r"\text{east}", "west"),
    ],
)
def test_different_by_spelling(gold: str, answer: str) -> None:
    """What strictness asks for, and what math-verify would let pass, is refused before it gets there."""
    assert same_spelling(gold, answer) is False


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("x^2+2x+1", "(x+1)^2", True),
        ("x^2+2x+1", "(x+1)^3", False),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        (r"\sqrt{2}", "1.414214", False),
        ("10^{-8}", "0.0", False),
        ("1,-2", "-2,1", True),
        ("(1,2)", "(2,1)", False),
        ("x=5", "5", True),
        ("5", "x=5", True),
        ("x>3", r"(3,\infty)", True),
        (r"(3,\infty)", "x>3", False),  # math-verify turns the gold's relation into a set, not the answer's
        ("5", "6,5", False),
        ("5", "5 or 7", False),
        ("5", "5x", False),
        ("5", "5t", False),  # t is among math-verify's units
        ("5", "5 million", False),
        ("5", r"5\text{ million}", False),
        ("5", r"5\pi", False),
        ("5", "2 sin x", False),
        ("5", "five", False),
        (r"\frac{\pi}{2}", "π/2", True),
        (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}", True),
        (r"1 \pm \sqrt{19}", r"1+\sqrt{19}", False),
        ("y = 2x + 3", "y = 3x + 2", False),
        (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix}", True),
    ],
)
def test_by_value(gold: str, answer: str, same: bool) -> None:
    """What spelling leaves open, algebra decides; the gold goes first, and near misses of 6 digits do not pass."""
    assert same_spelling(gold, answer) is None
    assert same_value(gold, answer) is same


@pytest.mark.parametrize("gold", ["", "{{{", r"\frac{"])
def test_an_unreadable_gold_is_told_from_a_wrong_answer(gold: str) -> None:
    with pytest.raises(UnparsableGoldError):
        same_value(gold, "5")
    assert at_length("5", Problem("p", "", gold)).kind == "invalid"


integers = st.integers(-(10**12), 10**12)


@given(integers, st.integers(0, 3))
def test_integers_equal_themselves_however_written(n: int, zeros: int) -> None:
    decimals = "." + zeros * "0" if zeros else ""
    for written in (f"{n}", f"{n:,}", f"${n:,}{decimals}$", f"{n}{decimals}", f"{n} apples"):
        assert same_spelling(str(n), written) is True
    assert same_spelling(str(n), str(n + 1)) is False


@given(integers, st.integers(1, 10**6), integers, st.integers(1, 10**6))
def test_fractions_are_compared_exactly(a: int, b: int, c: int, d: int) -> None:
    """The spelling of two fractions agrees with their values as Python has them."""
    assert same_spelling(f"{a}/{b}", rf"\frac{{{c}}}{{{d}}}" if c >= 0 else rf"-\frac{{{-c}}}{{{d}}}") is (
        Fraction(a, b) == Fraction(c, d)
    )


@given(st.text(alphabet=r"\frac{}sqrtex^_()$%.,!;:~ 0123abE+-=*/", max_size=60))
def test_spelling_survives_any_answer(text: str) -> None:
    """The part that runs in the trainer's own process raises nothing, and finds every answer equal to itself."""
    same_spelling("1", text)
    same_spelling(text, "1")
    assert "%" in text or same_spelling(text, text) is bool(normalise(text))


@pytest.mark.parametrize("unit", ["{", " ", ",111", r"\text{", r"\frac", "abc ", "1 ", "^", "cm", "$", "%"])
def test_spelling_takes_no_time(unit: str) -> None:
    """The longest answer that is let in, of any of the normaliser's favourite starts, takes milliseconds."""
    answer = "5" + unit * (2000 // len(unit) - 1) + "!"
    started = time.perf_counter()
    same_spelling("5", answer)
    assert time.perf_counter() - started < 0.2


KNIGHTS = "Alice is a knight, Bob is a knave"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (KNIGHTS, "correct"),
        ("(1) Bob is a knave\n(2) Alice is a knight.", "correct"),
        ("**Alice** is a *knight* and bob is a knave", "correct"),
        ("Alice is a knave, Bob is a knight", "wrong"),
        ("Alice is a knight", "wrong"),
        ("Alice is a knight, Alice is a knight", "wrong"),
        ("Alice is a knight, Bob is a knave, Bob is a knight", "wrong"),
        ("Alice is a knight, Bob is a knave, Carol is a knave", "wrong"),
        ("Alice is a knight, Bob is a knave or a knight", "wrong"),
        ("Alice is not a knight, Bob is a knave", "wrong"),
        ("Alice is a knight, Bob is a knave. Or: knight, knave", "wrong"),
        ("Alice is a knight, Bob is a knave; or both are knights", "wrong"),
        ("Alice is a knave, Alice is a knight", "wrong"),
        ("", "wrong"),
    ],
)
def test_roles(answer: str, kind: str) -> None:
    """Each name once, each with its role; an answer that hedges by naming more roles than people is wrong."""
    verdict = at_once(answer, Problem("p", "", KNIGHTS, grader="roles"))
    assert verdict is not None
    assert verdict.kind == kind


@pytest.mark.parametrize("gold", ["5", "", "Alice is a knight, Alice is a knave", "Alice is a knight or a knave"])
def test_roles_with_an_unreadable_gold(gold: str) -> None:
    verdict = at_once(KNIGHTS, Problem("p", "", gold, grader="roles"))
    assert verdict is not None
    assert verdict.kind == "invalid"


@pytest.mark.parametrize(("answer", "kind"), [(" 0.50\n", "correct"), ("0.5", "wrong")])
def test_exact(answer: str, kind: str) -> None:
    verdict = at_once(answer, Problem("p", "", "0.50", grader="exact"))
    assert verdict is not None
    assert verdict.kind == kind


def test_an_unknown_grader_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'exact'"):
        at_once("5", Problem("p", "", "5", grader="exakt"))


def test_gym_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"pip install 'rlcore\[cpu\]'"):
        at_length("5", Problem("p", "", "5", grader="gym", meta={"task": "chain_sum", "entry": {}}))


def test_math500(data_dir: Path) -> None:
    """Each of the 500 reference answers equals itself, by spelling and (for every tenth) by algebra."""
    golds = [json.loads(line)["answer"] for line in (data_dir / "math500_test.jsonl").read_text().splitlines()]
    assert len(golds) == 500
    assert [gold for gold in golds if same_spelling(gold, gold) is not True] == []
    assert [gold for gold in golds[::10] if not same_value(gold, gold)] == []
