"""A claim as a comparison with a number, over METRIC[ARM]:

    accuracy_after[dapo] - accuracy_after[grpo] > 0
    samples_to_target[tempo] / samples_to_target[grpo] < 1

Its left side is one number a seed, from the arms that were trained with that seed. The claim holds where the whole t-interval
of these numbers (`rlcore.repro.intervals`) lies on the claimed side of the number on the right, is false where it lies on the
other side, and undecided (None) where it reaches over the number, where a single seed gives no interval, and where a seed has
no value, as when an arm never reaches the target: an interval of the other seeds would be one of those that went well.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlcore.errors import UserError
from rlcore.repro.intervals import interval

Value = Callable[[str, str], float | None]  # of a metric and an arm; None: the run has no such value

OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Claim:
    left: ast.expr
    above: bool  # `>`, else `<`
    bound: float

    @property
    def terms(self) -> list[tuple[str, str]]:
        """Each metric with its arm."""
        found = [node for node in ast.walk(self.left) if isinstance(node, ast.Subscript)]
        return [(node.value.id, node.slice.id) for node in found]  # type: ignore[attr-defined]

    def at(self, value: Value) -> float | None:
        """The left side for one seed; None where a term has no value, or a divisor is 0."""
        try:
            number = _evaluate(self.left, value)
        except (_NoValue, ZeroDivisionError):
            return None
        return number if math.isfinite(number) else None

    def holds(self, per_seed: Sequence[float | None]) -> bool | None:
        bounds = interval(per_seed)
        if bounds is None:
            return None
        below, above = bounds[1] < self.bound, bounds[0] > self.bound
        return self.above == above if below or above else None


def parse(text: str) -> Claim:
    """Raises UserError, with the part that is meant, for what is no comparison of + - * / over METRIC[ARM] with a number."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise UserError(f"claim {text!r} cannot be read: {error.args[0]}") from None
    match tree:
        case ast.Compare(left, [ast.Gt() | ast.Lt() as relation], [bound]):
            for side in (left, bound):
                _check(side, text)
            claim = Claim(left, isinstance(relation, ast.Gt), _bound(bound, text))
            if not claim.terms:
                raise UserError(f"claim {text!r} is about no arm: write METRIC[ARM] on the left")
            return claim
    raise UserError(f"claim {text!r} is not one comparison, < or >")


class _NoValue(Exception):
    """A term without a value."""


def _evaluate(node: ast.expr, value: Value) -> float:
    match node:
        case ast.Constant(number):
            return float(number)  # type: ignore[arg-type]  # `_check` saw to it
        case ast.UnaryOp(operand=operand):
            return -_evaluate(operand, value)
        case ast.BinOp(left, symbol, right):
            return OPERATORS[type(symbol)](_evaluate(left, value), _evaluate(right, value))
        case ast.Subscript(ast.Name(metric), ast.Name(arm)):
            if (number := value(metric, arm)) is not None:
                return number
            raise _NoValue
    raise AssertionError(ast.dump(node))  # `_check` refuses it


def _check(node: ast.expr, text: str) -> None:
    match node:
        case ast.Constant(int() | float() as number) if not isinstance(number, bool) and math.isfinite(number):
            pass
        case ast.UnaryOp(ast.USub(), operand):
            _check(operand, text)
        case ast.BinOp(left, symbol, right) if type(symbol) in OPERATORS:
            _check(left, text)
            _check(right, text)
        case ast.Subscript(ast.Name(), ast.Name()):
            pass
        case _:
            raise UserError(f"claim {text!r}: {ast.unparse(node)!r} is none of + - * / over numbers and METRIC[ARM]")


def _bound(node: ast.expr, text: str) -> float:
    def refuse(metric: str, arm: str) -> float:
        raise UserError(f"claim {text!r} is to compare with a number: bring {metric}[{arm}] to the left")

    try:
        return _evaluate(node, refuse)
    except ZeroDivisionError:
        raise UserError(f"claim {text!r} divides by 0 on the right") from None
