"""Tells that two parsed answers differ, by their values at one point. `equal` asks here before it asks for algebra.

What differs at one point is not equal, and two numbers are had in a millisecond, where algebra may take minutes over functions
that have nothing in common. What agrees at the point is left to algebra.
"""

from __future__ import annotations

import cmath
import math
from typing import Any

DIGITS = 20
TOLERANCE = 1e-10  # relative; math-verify takes floats for equal that agree in 12 decimals


def different(gold: Any, answer: Any) -> bool:
    """Whether some part of the gold answer (coordinate, element, entry, end) has a value that none of the answer's has.

    False also where that cannot be told: for inequalities, words, and what has no value at the point.
    """
    expected, given = _values(gold, answer), _values(answer, gold)
    return bool(given) and any(all(_apart(a, b) for b in given) for a in expected)


def _values(parsed: Any, other: Any) -> list[complex | None]:
    """Of each part; None for unknown ones, nothing where it is not compared part by part."""
    import sympy
    from sympy.core.relational import Relational

    match parsed:
        case sympy.Tuple() | sympy.FiniteSet():
            return [value for part in parsed.args for value in _values(part, other)]
        case sympy.Interval():
            return [_at_point(parsed.start), _at_point(parsed.end)]
        case sympy.MatrixBase():
            return [_at_point(entry) for entry in parsed.flat()]
        case sympy.Eq() if not isinstance(other, Relational):
            return _values(parsed.rhs, other)  # `x=5` is compared with `5`
        case sympy.Expr() if not isinstance(parsed, sympy.MatrixExpr):
            return [_at_point(parsed)]
        case _:
            return []


def _at_point(expression: Any) -> complex | None:
    """The value where the variables, in the order of their names, are 10/7, 11/8, 12/9, …; infinite beyond a float's range."""
    from sympy import Rational

    if expression.is_Symbol:  # perhaps a word, compared letter by letter
        return None
    names = sorted({symbol.name for symbol in expression.free_symbols})
    point = {
        symbol: Rational(10 + names.index(symbol.name), 7 + names.index(symbol.name)) for symbol in expression.free_symbols
    }
    try:
        return complex(expression.evalf(DIGITS, subs=point))
    except OverflowError:
        return complex(math.inf)
    except (TypeError, ValueError, ArithmeticError):  # no number, a pole, too few digits
        return None


def _apart(a: complex | None, b: complex | None) -> bool:
    if a is None or b is None:
        return False
    if cmath.isinf(a) or cmath.isinf(b):
        return cmath.isinf(a) != cmath.isinf(b)
    return abs(a - b) > TOLERANCE * max(1, abs(a), abs(b))
