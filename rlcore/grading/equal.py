r"""Decides whether two answers are the same mathematics: first by their spelling, then by math-verify. Serves `graders`.

Strict where leniency would pay a guesser: numbers are compared exactly (0.333 is not 1/3, 0.5 is not 50%), letters keep their
case, a base and brackets must be the gold's. Lenient in how one thing is written: delimiters, spacing, \dfrac, units, commas.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import product
from typing import Any

from rlcore.grading.limits import MAX_BITS, MAX_LENGTH, bits
from rlcore.grading.refute import different


class UnparsableGoldError(ValueError):
    """math-verify cannot read the reference answer, so nothing can be compared with it."""


class TooLargeError(ValueError):
    """The answer's numbers would not fit into memory, and are not what the reference answer is."""


def same_spelling(gold: str, answer: str) -> bool | None:
    """Whether the answers are the same, where that shows without algebra; None where it takes `same_value`. Microseconds."""
    gold, answer = _comparable(gold, answer)
    one, other = _spell(gold), _spell(answer)
    if one == other or not other:
        return bool(other)
    values = _number(one), _number(other)
    if None not in values:
        return values[0] == values[1]
    if _WORDS.fullmatch(gold):
        return _word(one) == _word(other)
    if based := _BASED.fullmatch(one):
        return other == based["digits"]
    if "%" in other or _SIDE_BY_SIDE.search(other) or _letters_differ_in_case(one, other) or _brackets_differ(one, other):
        return False
    return None


def same_value(gold: str, answer: str) -> bool:
    """Whether the answers are equal by algebra. It may hang or eat memory: call it in a process that can be killed.

    Raises UnparsableGoldError, TooLargeError, and whatever sympy raises.
    """
    from math_verify import verify  # takes seconds to import

    gold, answer = _comparable(gold, answer)
    reference, found = _parse(gold), _parse(answer)
    if not reference:
        raise UnparsableGoldError(gold)
    if sum(map(bits, found)) > max(MAX_BITS, 2 * sum(map(bits, reference))):
        raise TooLargeError(answer)
    if all(different(*pair) for pair in product(reference, found)):
        return False
    # 12 decimals, as math-verify's default of 6 takes 0.0 for 10^{-8}.
    return verify(reference, found, float_rounding=12, timeout_seconds=None, raise_on_error=True)


def normalise(answer: str) -> str:
    r"""One spelling for what differs in writing only: `\dfrac12`, `\frac{1}{2}`; `$1,234.50`, `1234.5`; `5 cm`, `5`.

    Of an endless answer, its beginning.
    """
    return _spell(_tidy(answer[:MAX_LENGTH]))


def _comparable(gold: str, answer: str) -> tuple[str, str]:
    """Both tidied; the percent sign is a unit where the gold has it, and a part of the answer where it has not."""
    gold, answer = _tidy(gold), _tidy(answer)
    return (gold.replace("%", ""), answer.replace("%", "")) if "%" in gold else (gold, answer)


_TEXT = r"\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm|mathbf|operatorname)\s*"
_CHANGES_THE_VALUE = (
    "hundred|thousand|million|billion|trillion|dozen|half|halves|thirds?|quarters?|squared|cubed|factorial|over|times|plus|"
    "minus|mod|base|and|or|not|to|pi|sqrt|log|exp|sin|cos|tan|cot|sec|csc|inf|infinity"
)
_POWER = r"(?:\^\{?[0-9]\}?)?$"
_PERCENT = "(?:percent(?:age)?|pct)"
_UNIT_IN_TEXT = rf"(?:(?<=[0-9}})])|(?<=\\pi))\s*{_TEXT}\{{(?![^{{}}]*\b(?:{_CHANGES_THE_VALUE})\b)[A-Za-z./\s]*\}}" + _POWER
_UNIT_WORD = rf"\s*(?:cm|mm|km|kg|mg|ml|ft|lbs?|oz|mph)\b|\s+(?:of|in)\b|\s+(?!(?:{_CHANGES_THE_VALUE})\b)[A-Za-z]{{3,}}"
_UNIT_IN_WORDS = rf"^([-+]?[0-9.,/\s]*[0-9])(?:{_UNIT_WORD})+" + _POWER
_TIDY = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\?\$|(?<!\\)\\[()\[\]]", ""),
        (r"\\(?:left|right)(?:\.|(?![A-Za-z]))|\\[bB]igg?[lr]?(?![A-Za-z])", ""),
        (r"(?<=[0-9])(?:,\\!\s*|\{,\}|,\\,)(?=[0-9]{3})", ""),
        (r"(?<!\\)\\[!,;:]", ""),
        (r"(?<!\\)\\ |~|\\q?quad(?![A-Za-z])|\s+", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\s*\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])|°", ""),
        (rf"\\%|\s*{_TEXT}\{{\s*{_PERCENT}\s*\}}|\s*\b{_PERCENT}\b", "%"),
        (r"\*\*", "^"),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (_UNIT_IN_TEXT, ""),
        (_UNIT_IN_WORDS, r"\1"),
    )
]
_UNICODE = str.maketrans({"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt "})


def _tidy(answer: str) -> str:
    """The answer without what carries no meaning, still LaTeX that math-verify can read."""
    text = answer.translate(_UNICODE).strip(" *\n\t")
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text).strip().rstrip(" .,;")
    return text


_ARGUMENT = r"\s*(?:\{([^{}]*)\}|([0-9A-Za-z]))"
_ONE_SPELLING = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (_TEXT + r"\{([^{}]*)\}", r"\1"),
        (r"\\frac" + 2 * _ARGUMENT, r"\\frac{\1\2}{\3\4}"),
        (r"\\sqrt" + _ARGUMENT, r"\\sqrt{\1\2}"),
        (r"([_^])\s*\{(.)\}", r"\1\2"),
        (r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])", ""),  # `3 1/2` is not `31/2`, `\cot x` not `\cotx`
    )
]
_PLAIN_NUMBER = re.compile(r"(?P<sign>[-+]?)(?=\.?[0-9])(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.(?P<decimals>[0-9]*))?")


def _spell(text: str) -> str:
    for pattern, replacement in _ONE_SPELLING:
        text = pattern.sub(replacement, text)
    plain = _PLAIN_NUMBER.fullmatch(text)
    return _canonical(**plain.groupdict()) if plain else text


def _canonical(sign: str, whole: str, decimals: str | None) -> str:
    whole = whole.replace(",", "").lstrip("0")
    decimals = (decimals or "").rstrip("0")
    minus = "-" if sign == "-" and whole + decimals else ""
    return minus + (whole or "0") + ("." + decimals if decimals else "")


_MAX_DIGITS = 4300  # more, Python does not read
_LATEX_FRACTION = re.compile(r"([-+]?)([0-9]*)\\frac\{([0-9]+)\}\{([0-9]+)\}")
_SLASH_FRACTION = re.compile(r"([-+]?)(?:([0-9]+) )?([0-9]+)/([0-9]+)")


def _number(text: str) -> Fraction | None:
    """The exact value of a normalised integer, decimal, fraction or mixed number; None for anything else."""
    if len(text) > _MAX_DIGITS:
        return None
    if _PLAIN_NUMBER.fullmatch(text):
        return Fraction(text)
    fraction = _LATEX_FRACTION.fullmatch(text) or _SLASH_FRACTION.fullmatch(text)
    if not fraction or int(fraction[4]) == 0:
        return None
    value = int(fraction[2] or 0) + Fraction(int(fraction[3]), int(fraction[4]))
    return -value if fraction[1] == "-" else value


_WORDS = re.compile(_TEXT + r"\{[^{}]*\}")
_BASED = re.compile(r"(?P<digits>[0-9][0-9A-Z]*)_(?:[0-9]|\{[0-9]+\})")
_SIDE_BY_SIDE = re.compile(r"[0-9] +[0-9]")  # two numbers, which math-verify would add up
_INSIDE = r"(?:\\[^{}]|[^\\()\[\]])*"
_BRACKETED = re.compile(rf"(?P<open>\(|\[|\\\{{){_INSIDE},{_INSIDE}(?P<close>\)|\]|\\\}})")
_NO_SYMBOL = re.compile(r"\\[A-Za-z]+|[A-Za-z]{3,}|[^A-Za-z]")


def _word(text: str) -> str:
    return text.strip("().").casefold()


def _letters_differ_in_case(gold: str, answer: str) -> bool:
    """Whether the answer has a variable that the gold has in the other case only; math-verify would not tell them apart."""
    known, used = (set(_NO_SYMBOL.sub("", text)) for text in (gold, answer))
    return any(letter.swapcase() in known for letter in used - known)


def _brackets_differ(gold: str, answer: str) -> bool:
    """Whether both are one bracketed list, in brackets of other kinds: (1,2) is not [1,2]; a list without any may be either."""
    one, other = _BRACKETED.fullmatch(gold), _BRACKETED.fullmatch(answer)
    return one is not None and other is not None and one.group("open", "close") != other.group("open", "close")


def _parse(answer: str) -> list[Any]:
    from latex2sympy2_extended.math_normalization import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # Its own list of units has single letters in it: 5t would be 5.
    spelling = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    found = LatexExtractionConfig(boxed_match_priority=-1, normalization_config=spelling)
    return parse(f"${answer}$", [found], fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=True)
