r"""Reads numbers with their units, and compares them within a tolerance. Serves `graders`.

    9.81 m/s^2    -1.2e3 J    $3.2 \times 10^{-5}\ \mathrm{mol\,L^{-1}}$    1,250.50 dollars    $5 million    12%    2 1/2 hours

The whole answer must be one of these, `x = ` in front of it apart: `5 m or 7 m` is none.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rlcore.grading import units
from rlcore.grading.units import Unit


class UnreadableError(ValueError):
    """There is no one quantity in the text. Says why."""


@dataclass(frozen=True)
class Quantity:
    amount: Fraction
    unit: Unit | None  # None: a bare number


def read(text: str, unit: str = "") -> Quantity:
    """The quantity that the text is, or that a bare number is of that unit. Raises UnreadableError."""
    found = _NUMBER.fullmatch(_plain(text))
    if not found:
        raise UnreadableError("no number")
    written = found["unit"].strip()
    if written and unit:
        raise UnreadableError("it has a unit, and there is another beside it")
    try:
        return Quantity(_amount(found), units.read(_plain(unit) or written) if unit or written else None)
    except units.UnknownUnitError as error:
        raise UnreadableError(f"no unit is called {error}") from error
    except ZeroDivisionError as error:
        raise UnreadableError("a fraction of 0") from error


def convert(answer: Quantity, gold: Quantity) -> Fraction | None:
    """The answer's amount in the gold's unit, None where it is of another kind. A bare number is in the gold's unit already."""
    unit = gold.unit or Unit()
    if answer.unit is None:
        return answer.amount
    if answer.unit.powers != unit.powers:
        return None
    return (answer.amount + answer.unit.offset) * answer.unit.factor / unit.factor - unit.offset


def tolerance(given: Any, name: str) -> Fraction:
    """What a data set has: a number or the text of one, of None 0. Raises ValueError."""
    try:
        value = Fraction(str(0 if given is None else given))
    except ValueError as error:
        raise ValueError(f"`{name}` is no number but {given!r}") from error
    if value < 0:
        raise ValueError(f"`{name}` is below 0")
    return value


_NUMBER = re.compile(
    r"""(?P<sign>[-+]?)\s*
    (?: 10\s*\^\s*(?P<exponent>[-+]?[0-9]{1,3})
      | (?:(?P<whole>[0-9]+)\s+)? (?P<above>[0-9]+)\s*/\s*(?P<below>[0-9]+)
      | (?P<decimal>[0-9]{1,3}(?:[ ,][0-9]{3})+(?![0-9])(?:\.[0-9]+)? | [0-9]+(?:\.[0-9]*)? | \.[0-9]+)
        (?: \s*[*x]\s*10\s*\^\s*(?P<times_ten>[-+]?[0-9]{1,3}) | [eE](?P<e>[-+]?[0-9]{1,3}) )? )
    (?P<unit>(?![0-9.,]).*)""",
    re.VERBOSE,
)


def _amount(found: re.Match[str]) -> Fraction:
    if found["below"]:
        size = int(found["whole"] or 0) + Fraction(int(found["above"]), int(found["below"]))
    else:
        digits = re.sub("[ ,]", "", found["decimal"] or "1")
        size = Fraction(digits) * Fraction(10) ** int(found["exponent"] or found["times_ten"] or found["e"] or 0)
    return -size if found["sign"] == "-" else size


_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "⁄": "/", "~": " "})
_PLAIN = [
    (re.compile(pattern, flags), replacement)
    for pattern, flags, replacement in (
        (r"(?<!\\)\$([^$]*)(?<!\\)\$|\\[()\[\]]", 0, r"\1"),  # a formula's; one alone is a dollar's
        (r"(?<=\w)\*\*(?=-?[0-9])", 0, "^"),
        (r"\^\s*\{\s*([^{}\s]*)\s*\}", 0, r"^\1"),
        (r"\\(?:times|cdot)(?![A-Za-z])", 0, "*"),
        (r"\\approx(?![A-Za-z])|≈", 0, "="),
        (r"\\mu(?![A-Za-z])", 0, "μ"),
        (r"\\Omega(?![A-Za-z])", 0, "Ω"),
        (r"\^?\\(?:circ|degree)(?![A-Za-z])", 0, "°"),
        (r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf)|mbox|operatorname|unit)\s*\{([^{}]*)\}", 0, r"\1"),
        (r"\\[dtc]?frac\s*\{([0-9]+)\}\s*\{([0-9]+)\}", 0, r" \1/\2"),
        (r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", 0, r"\1/(\2)"),
        (r"\{,\}", 0, ","),
        (r"\\[,;:! ]|\\q?quad(?![A-Za-z])|[{}]", 0, " "),
        (r"\\([%$])", 0, r"\1"),
        (r"(?:°|\bdeg(?:rees?)?)\s*c(?:elsius)?\b", re.IGNORECASE, "°C"),
        (r"(?:°|\bdeg(?:rees?)?)\s*f(?:ahrenheit)?\b", re.IGNORECASE, "°F"),
        (r"\bUS ?(?=\$|dollar)", 0, ""),
        (r"\s+", 0, " "),
        (r"^(?:[ *]|\.(?![0-9]))+|[ .,;*]+$", 0, ""),
        (r"^[A-Za-z]\w{0,9} ?= ?|^= ?", 0, ""),
        (r"^([-+]?) ?([$€£¥₹]) ?(?=[-0-9.])(.*)$", 0, r"\1\3 \2"),
    )
]


def _plain(text: str) -> str:
    """The text without LaTeX and other typography, on one line, with a currency's sign behind its number."""
    text = re.sub("[⁰¹²³⁴-⁹⁻⁺]+", lambda raised: "^" + raised[0].translate(_RAISED), text)
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    return text
