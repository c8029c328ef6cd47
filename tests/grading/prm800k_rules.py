r"""PRM800K's rules for equal answers (Lightman et al., 2023, arXiv 2305.20050), written anew from their description: an oracle.

1. The same after mathd's clean-up of LaTeX, or after a stronger clean-up (units, `and`, `million`, LaTeX to text, case): equal.
2. Else tuples and intervals are split at their commas. Their brackets and their lengths must agree, and each element must:
   two plain fractions be the same string; of an integer and something else nothing will do; all else differ by what sympy
   simplifies to 0, tried only for at most two letters and no long exponents.

What it does not reproduce: the original's order of clean-up steps where an answer needs several, and its having no time limit;
whoever calls this must bring one.
"""

from __future__ import annotations

import re
from tokenize import TokenError

from pylatexenc.latex2text import LatexNodes2Text
from sympy import simplify
from sympy.parsing.sympy_parser import implicit_multiplication_application, parse_expr, standard_transformations

CLEAN_UP = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\n|\\!|\\left(?![a-z])|\\right(?![a-z])|\^\{?\\circ\}?|\\\$|\\?%", ""),
        (r"\\[dt]frac", r"\\frac"),
        (r"\\text\{ [^}]*\}$|\\mbox\{[^}]*\}(?:\^\d)?$", ""),
        (r"^[A-Za-z]{1,2} ?= ?", ""),
        (r"\s", ""),
        (r"(?<![0-9])\.(?=[0-9])", "0."),
        (r"\\sqrt([^{])", r"\\sqrt{\1}"),
        (r"\\frac([0-9])([0-9])", r"\\frac{\1}{\2}"),
        (r"\\frac([0-9])\{", r"\\frac{\1}{"),
        (r"\\frac(\{[^{}]*\})([0-9])", r"\\frac\1{\2}"),
        (r"^(-?[0-9]+)/([0-9]+)$", r"\\frac{\1}{\2}"),
        (r"^0\.50*$", r"\\frac{1}{2}"),
        (r"^\\text\{([^{}]*)\}$", r"\1"),
    )
]
UNITS = "degree|cm|centimeter|meter|mile|second|minute|hour|day|week|month|year|foot|feet|inch|yard"
STRONG_CLEAN_UP = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^\\text\{(.*)\}$", r"\1"),
        (r"\\?[%$]", ""),
        (r" (?:or|and) ", " , "),
        (r"(?:\\text\{)?\s*\bmillion\b\}?", "*10^6"),
        (r"(?:\\text\{)?\s*\bbillion\b\}?", "*10^9"),
        (r"(?:\\text|\\mbox)?\{?\s*\b(?:" + UNITS + r")(?:es|s)?\b\}? *(?:\^\{?[0-9]+\}?)?", ""),
        (r"\^ *\{?\\circ\}?|\\!|\\left(?![a-z])|\\right(?![a-z])", ""),
        (r"\\[dt]?frac *([0-9])([0-9])", r"\\frac{\1}{\2}"),
        (r"\\[dt]?frac *([0-9])\{", r"\\frac{\1}{"),
        (r"\\[dt]?frac(\{[^{}]*\})([0-9])", r"\\frac\1{\2}"),
        (r"\\d?t?frac\{([^{}]*)\}\{([^{}]*)\}", r" (\1)/(\2)"),
        (r"\\pi(?![a-z])", " pi "),
        (r"\\sqrt *\{([^{}]*)\}", r" sqrt(\1)"),
        (r"\\sqrt *([0-9])", r" sqrt(\1)"),
    )
]
PLAIN_FRACTION = re.compile(r"-?\(?-?[0-9]+\)?/\(?[0-9]+\)?")


def grade_answer(answer: str, gold: str) -> bool:
    """Whether the rules take `answer` for the same as `gold`. It may hang, and raise what sympy raises."""
    if not answer or not gold:
        return False
    if _clean(answer) == _clean(gold):
        return True
    answer, gold = _strongly_clean(answer), _strongly_clean(gold)
    if answer == gold:
        return True
    ours, theirs = _elements(gold), _elements(answer)
    if len(ours) > 1 and (gold[0], gold[-1]) != (answer[:1], answer[-1:]):
        return False
    return len(ours) == len(theirs) and bool(answer) and all(map(_same_element, ours, theirs))


def _same_element(gold: str, answer: str) -> bool:
    if PLAIN_FRACTION.fullmatch(gold) and PLAIN_FRACTION.fullmatch(answer):
        return gold == answer
    if _is_integer(gold) != _is_integer(answer):
        return False
    return _same_value(gold, answer)


def _same_value(gold: str, answer: str) -> bool:
    expression = f"({gold})-({answer})"
    letters = set(re.findall("[a-z]", re.sub("sqrt|frac", "", expression)))
    if len(letters) > 2 or re.search(r"\^\{|\^\(|\^[0-9]+\^|\^[0-9]{2,}", expression):
        return False
    try:
        transformations = (*standard_transformations, implicit_multiplication_application)
        return bool(simplify(parse_expr(expression.replace("^", "**"), transformations=transformations)) == 0)
    except (SyntaxError, TokenError, TypeError, ValueError, AttributeError):  # not an expression
        return False


def _clean(text: str) -> str:
    text = text.strip()
    for pattern, replacement in CLEAN_UP:
        text = pattern.sub(replacement, text)
    return text


def _strongly_clean(text: str) -> str:
    for pattern, replacement in STRONG_CLEAN_UP:
        text = pattern.sub(replacement, text)
    if "\\" in text:
        text = LatexNodes2Text().latex_to_text(text)
    for symbol, name in {"√": "sqrt", "π": "pi", "∞": "inf", "∪": "U", "·": "*", "×": "*"}.items():
        text = text.replace(symbol, name)
    text = re.sub(r"(?<=[0-9]) +(?=[0-9(])", "+", text.strip())  # 7 3/4
    text = (
        re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text)
        if re.fullmatch(r"-?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?", text)
        else text
    )
    text = re.sub(r"[\s{}]", "", text).lower()
    return re.sub(r"^(-?[0-9]+)\.0*$", r"\1", text)


def _elements(text: str) -> list[str]:
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and not re.search(r"[()\[\]]", text[1:-1]):
        return text[1:-1].split(",")
    return [text]


def _is_integer(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?[0-9]+(?:\.0*)?", text))
