"""Reads JSON and tool calls out of answers, and scores tool calls by ToolRL's rule. Serves `graders`.

ToolRL (Qian et al. 2025, arXiv 2504.13958, section 3.3), for the calls G of the reference and P of the answer:

    r_name  = |names(G) ∩ names(P)| / |names(G) ∪ names(P)|              as multisets
    r_param = Σ_pairs |keys(g) ∩ keys(p)| / |keys(g) ∪ keys(p)|
    r_value = Σ_pairs Σ_{k ∈ keys(g)} [g(k) = p(k)]
    credit  = (r_name + r_param + r_value) / (1 + |G| + Σ_g |keys(g)|)

over pairs (g, p) of one name, each call in one pair at most, in the pairing that scores most. A call of no arguments has all of
its keys right. Worked: G is weather(city=Rome, day=1) and time(zone=CET), P is weather(city=Rome, day=2): names 1/2, keys 1,
values 1 of at most 1 + 2 + 3, so that the credit is 2.5/6. It is 1 where the calls are the same, in any order, and only there.
(The authors' code pairs greedily, in the order of G, which where a tool is called twice may score less.)
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_LENGTH = 100_000  # characters, of which reading takes milliseconds
MAX_CALLS = 100  # far more than anybody makes at a time; each is compared with each of the reference


class UnreadableError(ValueError):
    """The text is not what it should be. Says why."""


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Mapping[str, str]  # values as `canonical` has them


def canonical(text: str) -> str:
    """The JSON value that the text is, in one spelling for all equal ones: with keys in order, `1.0` as `1`. Raises
    UnreadableError."""
    with _reading():
        values = _values(text)
        if len(values) != 1:
            raise ValueError(f"{len(values)} JSON values")
        return _spelt(values[0])


def calls(text: str) -> list[Call]:
    """Those that the text makes, at least one: JSON objects with `name`, and `arguments` (or `parameters`) by name, one after
    the other or in lists. Raises UnreadableError."""
    with _reading():
        values = [call for value in _values(text) for call in (value if isinstance(value, list) else [value])]
        if not 0 < len(values) <= MAX_CALLS:
            raise ValueError(f"{len(values)} calls")
        return [_call(value) for value in values]


def credit(reference: Sequence[Call], answer: Sequence[Call]) -> float:
    """ToolRL's, between 0 and 1."""
    names = _jaccard([call.name for call in reference], [call.name for call in answer])
    most = 1 + len(reference) + sum(len(call.arguments) for call in reference)
    return (names + _best_pairing(reference, answer)) / most


def _best_pairing(reference: Sequence[Call], answer: Sequence[Call]) -> float:
    from scipy.optimize import linear_sum_assignment

    scores = [[_alike(one, other) for other in answer] for one in reference]
    if not scores or not scores[0]:
        return 0.0
    rows, columns = linear_sum_assignment(scores, maximize=True)
    return sum(scores[row][column] for row, column in zip(rows, columns, strict=True))


def _alike(one: Call, other: Call) -> float:
    if one.name != other.name:
        return 0.0
    values = sum(other.arguments.get(key) == value for key, value in one.arguments.items())
    return values + _jaccard(list(one.arguments), list(other.arguments))


def _jaccard(one: Sequence[str], other: Sequence[str]) -> float:
    """Of two multisets; 1 of two empty ones."""
    shared = (Counter(one) & Counter(other)).total()
    return shared / (len(one) + len(other) - shared) if one or other else 1.0


def _call(value: Any) -> Call:
    match value:
        case {"name": str(name), "arguments": dict(given), **others} if "parameters" not in others:
            pass
        case {"name": str(name), "parameters": dict(given), **others} if "arguments" not in others:
            pass
        case _:
            raise ValueError("a call is an object with `name`, and `arguments` or `parameters`, an object too")
    return Call(name, {key: _spelt(argument) for key, argument in given.items()})


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except RecursionError as error:
        raise UnreadableError("nested too deeply") from error
    except ValueError as error:
        raise UnreadableError(str(error)) from error


def _values(text: str) -> list[Any]:
    """The JSON values that stand in the text one after the other."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"longer than {MAX_LENGTH} characters")
    values, place = [], len(text) - len(text.lstrip())
    while place < len(text):
        value, end = _DECODER.raw_decode(text, place)
        values.append(value)
        place = _SPACE.match(text, end).end()  # type: ignore[union-attr] # it matches anywhere
    return values


def _spelt(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key comes twice")
    return dict(pairs)


def _number(text: str) -> float | int:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number too large")
    return int(value) if value.is_integer() else value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_SPACE = re.compile(r"\s*")
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_refuse)
