r"""Refuses what algebra would need hours or gigabytes for. Serves `graders` (the texts) and `equal` (what they are parsed to).

The limits are far from any real answer: of the 8000 reference answers in MATH the longest has 159 characters, the deepest three
nested braces, the largest (`2^{4950}`) 4951 bits; none holds an operation. And they yield to the reference answer: what it has,
an answer may have.
"""

from __future__ import annotations

import math
import re
from typing import Any

MAX_LENGTH = 500  # characters; the parser takes up to a millisecond for each
MAX_DEPTH = 8  # nested braces, brackets and bars; the parser's time grows with their square
MAX_BITS = 14_000  # that the numbers in an answer take, written out: 4300 digits, the most that Python writes


def oversized(answer: str, gold: str) -> str | None:
    """Why an answer is not looked at: `too long`, `too deep`, `not worked out` or `too large`; None for any sane one. Takes
    microseconds."""
    if len(answer) > max(MAX_LENGTH, 2 * len(gold)):
        return "too long"
    if _depth(answer) > max(MAX_DEPTH, _depth(gold)):
        return "too deep"
    if not _operations(answer) <= _operations(gold):
        return "not worked out"
    if _worked_out_at_once(answer) and not _worked_out_at_once(gold):
        return "too large"
    return None


def bits(parsed: Any) -> float:
    """About how many bits the numbers in a parsed answer take, written out; a variable or a constant takes two. May be inf."""
    import mpmath
    import sympy

    match parsed:
        case sympy.Rational():
            return max(1, parsed.p.bit_length(), parsed.q.bit_length())
        case sympy.Float():
            return max(1, abs(mpmath.mag(parsed.num))) if parsed else 1
        case sympy.Pow() | sympy.exp():
            base, exponent = parsed.as_base_exp()
            return bits(base) * _value(exponent, bits(exponent))
        case sympy.factorial() | sympy.gamma():
            size = bits(parsed.args[0])
            return size * _value(parsed.args[0], size)
        case sympy.binomial():
            above, below = map(bits, parsed.args)
            return min(_value(parsed.args[0], above), above * _value(parsed.args[1], below))
        case sympy.MatrixBase():
            return sum(map(bits, parsed.flat()))
        case sympy.Basic() if parsed.args:
            return sum(map(bits, parsed.args))
        case _:
            return 2


_BRACKET = re.compile(r"(?P<open>[{(\[]|\\l(?:floor|ceil))|[})\]]|\\r(?:floor|ceil)")


def _depth(text: str) -> int:
    """Of the deepest place; bars, which do not tell which side they are, count as if all were nested."""
    depth = deepest = text.count("|") // 2
    for bracket in _BRACKET.finditer(text):
        depth += 1 if bracket["open"] else -1
        deepest = max(deepest, depth)
    return deepest


_COMMAND = (
    r"sum|prod|i*int|lim|det|gcd|lcm|xrightarrow|norm|eye|zeros|ones|diag|rank|tr|trace|rref|nullspace|cols|rows|eig[a-z]*|svd|SVD|"
    r"diagonalize|[hv]stack|orth[a-z]*"
)
_OPERATION = re.compile(
    rf"\\(?:operatorname\s*\{{\s*)?({_COMMAND})(?![A-Za-z])|\{{(vmatrix)\}}|(\\\|)|(\\frac\s*\{{d\}}\s*\{{d)"
)
_NUMBER_OF_THOUSANDS_OF_DIGITS = re.compile(r"[0-9]E[-+]?[0-9]{4}|\\(?:[dtc]?binom|[gG]amma)(?=.*[0-9]{5}|\s*[{(][^{}]*\^)")


def _operations(text: str) -> set[str]:
    """What asks for work, where an answer shows its result: math-verify would do it, at any cost."""
    return {operation for found in _OPERATION.findall(text) for operation in found if operation}


def _worked_out_at_once(text: str) -> bool:
    """Whether the parser already, before `bits` can tell, would write out a number of thousands of digits."""
    return bool(_NUMBER_OF_THOUSANDS_OF_DIGITS.search(text))


def _value(number: Any, size: float) -> float:
    """A bound on the absolute value of a parsed number of that many bits; at least 1."""
    if size > 100:
        return math.inf
    return max(1.0, float(abs(number)) if number.is_Rational else 2.0**size)
