"""Tells that two parsed answers differ, by their values at one point. `equal` asks here before it asks for algebra.

What differs at one point is not equal, and two numbers are had in a millisecond, where algebra may take minutes over functions
that have nothing in common. What agrees at the point is left to algebra, except infinities: sympy draws the order of its
deductions by lot, and where a part is infinite some orders find that x - ∞ is 0.
"""

from __future__ import annotations

import cmath
import math
from typing import Any

DIGITS = 20
TOLERANCE = 1e-10  # relative; math-verify takes floats for equal that agree in 12 decimals


def different(gold: Any, answer: Any) -> bool:
    """Whether some part of the gold answer (coordinate, element, entry, end) has a value that none of the answer's has.

    An inequality is no finite set, and none with an infinite side is one without. False also where nothing can be told: for
    other relations, words, and what has no value at the point.
    """
    from sympy import FiniteSet

    if _inequality(gold) and isinstance(answer, FiniteSet):  # math-verify would take the set for the ends of an interval
        return True
    if _relations(gold) and _relations(answer):
        return _infinite(answer) and not _infinite(gold)
    expected, given = _values(gold, answer), _values(answer, gold)
    return bool(given) and any(all(_apart(a, b) for b in given) for a in expected)


def _relations(parsed: Any) -> list[Any]:
    """The relation itself, or those of a chain; nothing for anything else."""
    from sympy import And
    from sympy.core.relational import Relational

    parts = parsed.args if isinstance(parsed, And) else [parsed]
    return [part for part in parts if isinstance(part, Relational)]


def _inequality(parsed: Any) -> bool:
    from sympy import Eq

    return any(not isinstance(relation, Eq) for relation in _relations(parsed))


def _infinite(parsed: Any) -> bool:
    """Whether a side of a relation is infinite or undefined at the point; too large for a float is neither."""
    from sympy import nan, oo, zoo

    return any(_evaluated(side) in (oo, -oo, zoo, nan) for relation in _relations(parsed) for side in relation.args)


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
    """The value at the point, infinite beyond a float's range; None for what has none."""
    value = None if expression.is_Symbol else _evaluated(expression)  # a symbol is perhaps a word, compared letter by letter
    try:
        return None if value is None else complex(value)
    except OverflowError:
        return complex(math.inf)
    except (TypeError, ValueError):  # no number, a pole
        return None


def _evaluated(expression: Any) -> Any:
    """With the variables, in the order of their names, at 10/7, 11/8, 12/9, …; None where that fails."""
    from sympy import Rational

    names = sorted({symbol.name for symbol in expression.free_symbols})
    point = {
        symbol: Rational(10 + names.index(symbol.name), 7 + names.index(symbol.name)) for symbol in expression.free_symbols
    }
    try:
        return expression.evalf(DIGITS, subs=point)
    except (AttributeError, TypeError, ValueError, ArithmeticError):  # no number, too few digits
        return None


def _apart(a: complex | None, b: complex | None) -> bool:
    if a is None or b is None or cmath.isnan(a):
        return False
    if cmath.isnan(b):  # ∞ - ∞, 1/0
        return True
    if cmath.isinf(a) or cmath.isinf(b):
        return cmath.isinf(a) != cmath.isinf(b)
    return abs(a - b) > TOLERANCE * max(1, abs(a), abs(b))
