r"""The graders for other answers than mathematics: choice, quantity, json, tool_calls. What counts as the same, what must not;
that hostile answers are wrong, and unreadable gold answers invalid. `roles`, `exact` are in `test_equal`, `gym` in `test_pool`.
"""

from __future__ import annotations

import json
import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.grading import quantities, units
from rlcore.grading.graders import at_once, gold_fault
from rlcore.grading.pool import Grader
from rlcore.types import Problem, Verdict
from tests.grading.hostile import strings


def judge(grader: str, gold: str, answer: str, **meta: Any) -> Verdict:
    verdict = at_once(answer, Problem("p", "", gold, grader, meta))
    assert verdict is not None
    return verdict


# -- choice --------------------------------------------------------------------------------------------------------------

CITIES = ["London", "Paris", "New York", "C", "A. D. 33"]


@pytest.mark.parametrize("gold", ["B", "(b)", "Paris", "B) Paris"])
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("B", "correct"),
        ("b", "correct"),
        ("(B)", "correct"),
        ("[ b ]", "correct"),
        (r"\text{(B)}", "correct"),
        ("**B.**", "correct"),
        ("Option B", "correct"),
        ("B) Paris", "correct"),
        ("(B): paris.", "correct"),
        ("Paris", "correct"),
        ("  PARIS. ", "correct"),
        ("A", "wrong"),
        ("London", "wrong"),
        ("B or C", "wrong"),
        ("B, C", "wrong"),
        ("BC", "wrong"),
        ("(B)(C)", "wrong"),
        ("B) Paris or London", "wrong"),
        ("B) London", "wrong"),
        ("not B", "wrong"),
        ("Not Paris", "wrong"),
        ("Because", "wrong"),
        ("the letter b", "wrong"),
        ("", "wrong"),
    ],
)
def test_a_choice_is_one_option_by_letter_or_text(gold: str, answer: str, kind: str) -> None:
    assert judge("choice", gold, answer, options=CITIES).kind == kind


@pytest.mark.parametrize(
    ("answer", "picked"),
    [
        ("C", "C"),
        ("D", "D"),
        ("D) C", "D"),
        ("New  York", "C"),
        ("a. d. 33", "E"),
        ("E. A. D. 33", "E"),
        ("A. D. 33 B", ""),
        ("F", ""),
    ],
)
def test_a_letter_is_a_letter_before_it_is_a_text(answer: str, picked: str) -> None:
    """What was picked is the verdict's answer, so that a majority counts `C` and `New York` together."""
    assert judge("choice", "A", answer, options=CITIES).answer == picked


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"A": "London", "b": "Paris"}, "correct"),
        ({"label": ["A", "B"], "text": ["London", "Paris"]}, "correct"),
        ({"label": ["1", "2"], "text": ["London", "Paris"]}, "invalid"),
        (None, "correct"),
        (["London", " london. "], "invalid"),
        (["London", ""], "invalid"),
        (["London"], "invalid"),
        ("London, Paris", "invalid"),
        (["x"] * 27, "invalid"),
        ({"B": "London", "b": "Paris"}, "invalid"),
        ({"label": [["B"], "A"], "text": ["London", "Paris"]}, "invalid"),
    ],
)
def test_options_as_data_sets_have_them(options: Any, kind: str) -> None:
    """B of a list, of letters, of ARC's two lists, or of nothing; and lists that cannot have it."""
    assert judge("choice", "B", "(B)", options=options).kind == kind


def test_without_options_only_a_letter_is_a_choice() -> None:
    said = {answer: judge("choice", "B", answer).kind for answer in ("b", "(B)", "B) Paris", "Paris", "B or C")}
    assert said == {"b": "correct", "(B)": "correct", "B) Paris": "wrong", "Paris": "wrong", "B or C": "wrong"}


# -- quantity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1.5 m", "150 cm"),
        ("1.5 m", r"150\,\mathrm{cm}"),
        ("1.5 m", "1.5"),  # a bare number is in the gold's unit
        ("1.5 m", "x = 1.5 metres."),
        ("2 kg", "2,000 g"),
        ("2 kg", "2 000 grams"),
        ("2 kg", "2 KG"),
        ("90 min", "1.5 hours"),
        ("90 min", "1 1/2 h"),
        ("90 min", r"1\frac{1}{2}\text{ hours}"),
        ("36 km/h", "10 m/s"),
        ("36 km/h", r"$10\ \frac{\text{m}}{\text{s}}$"),
        ("36 km/h", "10 metres per second"),
        ("9.8 m/s^2", "9.8 m s⁻²"),
        ("9.8 m/s^2", "9.8 metres per second squared"),
        ("9.8 m/s^2", "980 cm/s**2"),
        ("4 m^2", "4 square metres"),
        ("4 m^2", "40000 cm2"),
        ("5 J/(kg K)", "5 J kg^-1 K^-1"),
        ("5 J/(kg (K))", "5 J/kg/K"),
        ("1 N", "1 kg*m/s^2"),
        ("3.6 MJ", "1 kWh"),
        ("300000000 m/s", r"3 \times 10^{8} m/s"),
        ("300000000 m/s", "3e8 m/s"),
        ("300000000 m/s", "3·10⁸ m/s"),
        ("0.001 m", "10^-3 m"),
        ("-5", "−5.0"),
        ("1234567", "1,234,567"),
        ("$5", "5 dollars"),
        ("$5", r"\$5.00"),
        ("$5", "500 cents"),
        ("5 USD", "US$5"),
        ("-$5", "$-5"),
        ("€3.50", "3.5 EUR"),
        ("$2 million", "2,000,000 dollars"),
        ("50%", "50"),
        ("50%", r"50\%"),
        ("0.5", "50 percent"),
        ("20 °C", r"20^\circ\text{C}"),
        ("20 °C", "293.15 K"),
        ("20 °C", "68 degrees Fahrenheit"),
        ("90°", "90 degrees"),
        ("1 L", "1000 cubic centimetres"),
        ("6 ft", "2 yards"),
        ("2 years", "24 months"),
    ],
)
def test_the_same_quantity(gold: str, answer: str) -> None:
    """Without a tolerance, to the last digit."""
    assert judge("quantity", gold, answer) == Verdict("correct")


@pytest.mark.parametrize(
    ("gold", "answer", "reason"),
    [
        ("1.5 m", "150 m", "wrong answer"),
        ("1.5 m", "150", "wrong answer"),
        ("1.5 m", "1.5 s", "wrong unit"),
        ("1.5 m", "1.5 m^2", "wrong unit"),
        ("1.5 m", "1.5 m)", "wrong answer"),
        ("1.5 m", "1.5 apples", "wrong answer"),
        ("1.5 m", "1.5 m or 2 m", "wrong answer"),
        ("1.5 m", "1.5 m = 7 m", "wrong answer"),
        ("1.5 m", "not 1.5 m", "wrong answer"),
        ("1.5 m", "1.5 m, 2 m", "wrong answer"),
        ("1.5 m", "1,5 m", "wrong answer"),  # where a comma groups digits it groups three
        ("5", "5 m", "wrong unit"),
        ("1 MW", "1 mW", "wrong answer"),
        ("1 MW", "1 mw", "wrong answer"),  # mega or milli: neither
        ("1 mW", "1 mw", "wrong answer"),
        ("50%", "0.5", "wrong answer"),
        ("$5", "5 €", "wrong unit"),
        ("20 °C", "20 K", "wrong answer"),
        ("3", "1e9999", "wrong answer"),
        ("3", "1/0", "wrong answer"),
        ("3", "9" * 501, "too long"),
        ("3", "NaN", "wrong answer"),
        ("3", "", "wrong answer"),
    ],
)
def test_another_quantity(gold: str, answer: str, reason: str) -> None:
    verdict = judge("quantity", gold, answer)
    assert (verdict.kind, verdict.reason.partition(":")[0]) == ("wrong", reason)


@pytest.mark.parametrize(
    ("meta", "right", "wrong"),
    [
        ({"rel_tol": 0.01}, ["9.9 m", "10.1 m", "990 cm"], ["9.89 m", "10.11 m", "9.9 km"]),
        ({"abs_tol": 0.5}, ["9.5 m", "1050 cm"], ["9.49 m", "1051 cm"]),
        ({"rel_tol": "0.01", "abs_tol": 0.5}, ["9.5 m"], ["9.4 m"]),  # the wider one; a CSV file has texts
        ({"rel_tol": None}, ["10.0 m"], ["10.001 m"]),
    ],
)
def test_tolerances_are_of_the_golds_amount_in_its_unit(meta: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    kinds = {answer: judge("quantity", "10 m", answer, **meta).kind for answer in right + wrong}
    assert kinds == dict.fromkeys(right, "correct") | dict.fromkeys(wrong, "wrong")


def test_a_unit_may_stand_beside_the_gold_answer() -> None:
    assert judge("quantity", "1.5", "150 cm", unit=r"\mathrm{m}") == Verdict("correct")
    assert judge("quantity", "1.5", "150 cm", unit="s").reason == "wrong unit: 150 cm"


@pytest.mark.parametrize(
    ("gold", "meta", "says"),
    [
        ("five", {}, "(no number)"),
        ("5 apples", {}, "(no unit is called apples)"),
        ("5 m", {"unit": "m"}, "(it has a unit, and there is another beside it)"),
        ("5 m", {"rel_tol": "1%"}, "(`rel_tol` is no number but '1%')"),
        ("5 m", {"rel_tol": True}, "(`rel_tol` is no number but True)"),
        ("5 m", {"abs_tol": -1}, "(`abs_tol` is below 0)"),
    ],
)
def test_a_gold_quantity_that_cannot_be_compared_with_is_invalid(gold: str, meta: dict[str, Any], says: str) -> None:
    verdict = judge("quantity", gold, "5 m", **meta)
    assert (verdict.kind, verdict.reason) == ("invalid", f"gold answer unparsable: {gold} {says}")


def test_every_unit_is_read_back_as_itself() -> None:
    """Of the whole table, with prefixes: nothing that is called a unit means another where it stands alone."""
    for name, unit in units._table().items():
        if name not in units._POWERS:
            assert units.read(name) == unit, name
    with pytest.raises(units.UnknownUnitError):
        units.read("furlong")


@given(st.integers(-(10**9), 10**9), st.sampled_from(["m", "km", "cm", "mm", "in", "ft", "mi"]))
def test_there_and_back_is_exact(amount: int, name: str) -> None:
    """Through any unit of length, in fractions: no conversion rounds."""
    gold = quantities.read("1 m")
    metres = quantities.convert(quantities.read(f"{amount} {name}"), gold)
    assert metres is not None
    back = quantities.convert(quantities.Quantity(metres, gold.unit), quantities.read(f"1 {name}"))
    assert back == Fraction(amount)


# -- json ----------------------------------------------------------------------------------------------------------------

GOLD_JSON = '{"name": "Ann", "age": 30, "tags": ["a", "b"], "note": null, "ok": true}'


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"ok":true,"tags":["a","b"],"note":null,"age":3.0e1,"name":"A\\u006en"}', ""),
        (GOLD_JSON.replace("30", "31"), "wrong answer"),
        (GOLD_JSON.replace("30", '"30"'), "wrong answer"),
        (GOLD_JSON.replace("true", "1"), "wrong answer"),
        (GOLD_JSON.replace('"a", "b"', '"b", "a"'), "wrong answer"),
        (GOLD_JSON.replace(', "ok": true', ""), "wrong answer"),
        (GOLD_JSON.replace("}", ', "more": 1}'), "wrong answer"),
        (GOLD_JSON.replace("}", ', "age": 31}'), "no JSON"),  # one value for each key
        (GOLD_JSON + GOLD_JSON, "no JSON"),
        ("{'name': 'Ann'}", "no JSON"),
        ("NaN", "no JSON"),
        ("1e999", "no JSON"),
        ("[" * 50_000, "no JSON"),
        ("1" * 5000, "no JSON"),
        (" " * 200_000, "no JSON"),
        ("", "no JSON"),
    ],
)
def test_json_is_compared_by_value(answer: str, reason: str) -> None:
    verdict = judge("json", GOLD_JSON, answer)
    assert (verdict.kind, verdict.reason.partition(":")[0]) == ("wrong" if reason else "correct", reason)


@pytest.mark.parametrize("gold", ["{", "NaN", '{"a": 1, "a": 2}', "", "1 2", "yes"])
def test_gold_json_that_is_none_is_invalid(gold: str) -> None:
    assert judge("json", gold, "1").kind == "invalid"


# -- tool calls ----------------------------------------------------------------------------------------------------------


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def said(*calls: dict[str, Any]) -> str:
    return "\n".join(map(json.dumps, calls))


ROME, CET = call("weather", city="Rome", day=1), call("time", zone="CET")
OSLO = call("weather", city="Oslo", day=2)


@pytest.mark.parametrize(
    ("gold", "answer", "credit"),
    [
        ([ROME, CET], [call("weather", city="Rome", day=2)], 2.5 / 6),  # structured.py's worked example
        ([ROME, CET], [CET, ROME], 1),
        ([ROME], [{"parameters": ROME["arguments"], "name": "weather", "id": 7}], 1),
        ([ROME], [call("weather", city="Rome", day=1.0)], 1),
        ([ROME], [call("weather", city="Rome", day="1")], 3 / 4),
        ([ROME], [call("weather", city="Rome", day=True)], 3 / 4),
        ([ROME], [call("weather", city="Rome", day=1, hour=3)], (1 + 2 / 3 + 2) / 4),
        ([ROME], [call("weather", town="Rome", day=1)], (1 + 1 / 3 + 1) / 4),
        ([ROME], [call("forecast", city="Rome", day=1)], 0),
        ([ROME], [ROME, ROME], (1 / 2 + 1 + 2) / 4),  # an honest call again is no more than a name too many
        ([ROME], [ROME, CET], (1 / 2 + 1 + 2) / 4),
        ([call("now")], [call("now")], 1),
        ([call("now")], [call("now", zone="CET")], 1 / 2),
        ([ROME, OSLO], [OSLO, call("weather", city="Rome", day=3)], (1 + 2 + 3) / 7),
        # Greedily, in the order of G, the first would take the second's: 0/2 and 1/2 values in all, not 1 and 2.
        (
            [call("f", a=1, b=1), call("f", a=1, b=2)],
            [call("f", a=1, b=2), call("f", a=9, b=1)],
            (1 + 2 + 1 + 2) / 7,
        ),
    ],
)
def test_toolrls_credit(gold: list[dict[str, Any]], answer: list[dict[str, Any]], credit: float) -> None:
    """By hand: (names + keys + values) / (1 + calls + keys of the reference). All of it, and only all of it, is correct."""
    for form in (said(*answer), json.dumps(answer)):
        verdict = judge("tool_calls", said(*gold), form)
        assert verdict.credit == pytest.approx(credit)
        assert verdict.kind == ("correct" if credit == 1 else "wrong")


@pytest.mark.parametrize(
    "answer",
    [
        "weather(city='Rome')",
        '{"name": "weather"}',
        '{"name": "weather", "arguments": "Rome"}',
        '{"name": "weather", "arguments": {}, "parameters": {}}',
        '{"name": 1, "arguments": {}}',
        '[[{"name": "weather", "arguments": {}}]]',
        "[]",
        said(*[ROME] * 101),
        '{"name": "weather", "arguments": {"a": ' + "[" * 40_000,
    ],
)
def test_what_is_no_call_has_no_credit(answer: str) -> None:
    verdict = judge("tool_calls", said(ROME), answer)
    assert (verdict.kind, verdict.reason.partition(":")[0], verdict.credit) == ("wrong", "no tool calls", None)


@pytest.mark.parametrize("gold", ["", "[]", "weather()", '{"name": "weather"}'])
def test_gold_calls_that_are_none_are_invalid(gold: str) -> None:
    assert judge("tool_calls", gold, said(ROME)).kind == "invalid"


# -- all of them ---------------------------------------------------------------------------------------------------------

SOUND = {
    "choice": Problem("p", "", "Paris", "choice", {"options": CITIES}),
    "quantity": Problem("p", "", "1234.5 m/s", "quantity", {"rel_tol": 0.01}),
    "json": Problem("p", "", GOLD_JSON, "json"),
    "tool_calls": Problem("p", "", said(ROME, CET), "tool_calls"),
    "roles": Problem("p", "", "Al is a knight, Bo is a knave", "roles"),
}


def test_completions_are_read_where_their_grader_looks() -> None:
    """In the tags, boxes and blocks that models are asked for; and a number whose unit was left behind is no answer."""
    calls = f"<think>{said(OSLO)}</think>\n<tool_call>\n{said(ROME)}\n</tool_call> and <tool_call>{said(CET)}</tool_call>"
    texts = [
        ("choice", r"so \boxed{\text{(B)}}", "correct"),
        ("choice", "The answer is (B).", "correct"),
        ("quantity", r"$v = \boxed{4444.2\ \mathrm{km/h}}$", "correct"),
        ("quantity", "The answer is 1234.5 m/s.", "correct"),
        ("quantity", "That makes 1234.5 km/s", "wrong"),
        ("json", f"<think>{{</think>Here it is:\n```json\n{GOLD_JSON}\n```\nDone.", "correct"),
        ("json", f"<answer>{GOLD_JSON}</answer>", "correct"),
        ("json", f"It is {GOLD_JSON}.", "correct"),
        ("json", "I cannot.", "wrong"),
        ("tool_calls", calls, "correct"),
        ("tool_calls", said(ROME, CET), "wrong"),  # outside the tags nothing is called
        ("roles", "<answer>(1) Bo is a knave\n(2) Al is a knight</answer>", "correct"),
    ]
    with Grader() as grader:
        verdicts = grader.grade([(SOUND[name], text, False) for name, text, _ in texts])
    assert [verdict.kind for verdict in verdicts] == [kind for _, _, kind in texts]
    assert [verdicts[k].reason for k in (4, 8, 10)] == ["no answer"] * 3


@pytest.mark.parametrize("name", SOUND)
def test_hostile_completions_are_wrong(name: str) -> None:
    """Those that no sane policy writes, made for mathematics: none is right, none excuses itself by breaking the grader."""
    drawn = strings(500, seed=1, canary="canary")
    with Grader() as grader:
        verdicts = grader.grade([(SOUND[name], hostile.text, False) for hostile in drawn])
    assert {verdict.kind for verdict in verdicts} == {"wrong"}


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize(
    "unit", ["(", "[1,", '{"a":', "^{ ", "$", "A is a ", "1 ", "1,111", r"\text{", "/", "m^", '{"name": "f", ']
)
def test_long_answers_take_no_time(name: str, unit: str) -> None:
    """A megabyte of any grader's favourite start, with an end that spoils it; and as much as is looked at."""
    for length in (10**6, 90_000, 480):
        answer = unit * (length // len(unit)) + "!"
        started = time.perf_counter()
        verdict = at_once(answer, SOUND[name])
        assert time.perf_counter() - started < 5
        assert verdict is not None
        assert verdict.kind == "wrong"


@given(
    st.sampled_from(sorted(SOUND)),
    st.text(max_size=200),
    st.text(alphabet=r"\textfrac{}[]()\"':,.^*/$%°-+eE10 AaBbms" + "\n", max_size=200),
)
def test_no_answer_breaks_a_grader(name: str, anything: str, favourites: str) -> None:
    for answer in (anything, favourites, SOUND[name].answer + favourites):
        verdict = at_once(answer, SOUND[name])
        assert verdict is not None
        assert verdict.kind != "invalid"


def test_a_sound_problem_is_not_refused() -> None:
    assert {name: gold_fault(problem) for name, problem in SOUND.items()} == dict.fromkeys(SOUND, "")
    assert gold_fault(Problem("p", "", "Al is a knight, Al is a knave", "roles")).startswith("gold answer unparsable: Al is")
    assert gold_fault(Problem("p", "", "x^2+1", "math")) == ""
