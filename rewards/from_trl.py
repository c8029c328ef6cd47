"""A reward function written for TRL as a component here: `name: my_rewards:my_function` in a recipe's `rewards`. `compose`
comes here for every name that is no class of ours; `as_trl` is the other direction.

TRL (1.16, GRPOTrainer) calls `function(prompts=…, completions=…, completion_ids=…, COLUMN=…, …)` with lists that have an entry
per completion, and gets back a list of floats and Nones. Here the columns are the problem's fields `id`, `answer` and `grader`
and what its source put into `meta`. Prompts are the problems' texts, before the recipe's template; completion ids include the
end token. What belongs to TRL's trainer (`trainer_state`, `log_extra`, …) is not there.

A None is Invalid here, as nobody judged that completion: it leaves the batch and is counted. TRL would add up the others.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlcore import plugins
from rlcore.errors import UserError
from rlcore.protocols import Reward
from rlcore.types import Group, Invalid, Problem, Score, Scored

DATA = ("prompts", "completions", "completion_ids")
OF_THE_TRAINER = ("trainer_state", "log_extra", "log_metric", "environments")
FORMS = ("text", "messages")


def from_trl(name: str, target: Any, options: Mapping[str, Any]) -> FromTrl:
    """The component for a function of TRL's signature, `async` ones included, or for what makes such a function out of
    settings, like `trl.rewards:get_soft_overlong_punishment`.

    Options: `completions`, "text" (default) or "messages", is the form in which the function wants prompts and completions:
    strings, or lists of messages (TRL's own rewards read messages). The others are the function's parameters that have a
    default, or the settings of its maker. Raises UserError for other options and for what is no such function.
    """
    options = dict(options)
    form = options.pop("completions", "text")
    if form not in FORMS:
        raise UserError(f"{name!r}: completions are given as 'text' or as 'messages', not as {form!r}")
    function = _configured(name, target, options) if callable(target) else target
    if not callable(function) or not _takes_data(function):
        raise UserError(f"{name!r} is neither a class derived from rlcore.protocols.Reward nor a reward function of TRL's kind")
    return FromTrl(name.rpartition(":")[2], function, messages=form == "messages")


class FromTrl(Reward):
    """The function as a component. Raises UserError where it cannot do without something that only TRL's trainer has."""

    def __init__(self, name: str, function: Callable[..., Any], *, messages: bool) -> None:
        self._name, self._function, self._messages = name, function, messages
        self._required = [p.name for p in _parameters(function) if p.default is p.empty and p.name not in DATA]
        if unknown := [asked for asked in self._required if asked in OF_THE_TRAINER]:
            raise UserError(
                f"reward function {name!r} asks for {unknown[0]!r}, which only TRL's trainer has: give it a default"
            )
        self._async = asyncio.Runner()  # one event loop for all calls, as clients that a function keeps are bound to theirs

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group. Raises UserError where a problem lacks a column that is asked for."""
        values = self._function(**self._arguments(groups))
        if inspect.iscoroutine(values):
            values = self._async.run(values)
        return [Invalid(f"{self._name} returned None") if value is None else Scored(float(value)) for value in values]

    def close(self) -> None:
        self._async.close()

    def _arguments(self, groups: Sequence[Group]) -> dict[str, list[Any]]:
        flat = [(group.problem, completion) for group in groups for completion in group.completions]
        arguments = {
            **self._columns([problem for problem, _ in flat]),
            "prompts": [self._said("user", problem.prompt) for problem, _ in flat],
            "completions": [self._said("assistant", completion.text) for _, completion in flat],
            "completion_ids": [list(completion.token_ids) for _, completion in flat],
        }
        taken = [p.name for p in _parameters(self._function)]
        return {name: values for name, values in arguments.items() if name in taken or _open(self._function)}

    def _columns(self, problems: Sequence[Problem]) -> dict[str, list[Any]]:
        """Every column that some problem has, with None for those without; options of the recipe stand in for theirs."""
        rows = [{**p.meta, "id": p.id, "answer": p.answer, "grader": p.grader} for p in problems]
        for column in self._required:
            if lacking := next((row for row in rows if column not in row), None):
                raise UserError(
                    f"reward function {self._name!r} needs the column {column!r}, and problem {lacking['id']} has only "
                    f"{', '.join(lacking)}"
                )
        settled = self._function.keywords if isinstance(self._function, functools.partial) else {}
        names = dict.fromkeys(name for row in rows for name in row if name not in settled)
        return {name: [row.get(name) for row in rows] for name in names}

    def _said(self, role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if self._messages else text


def _configured(name: str, target: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    if _takes_data(target):
        optional = [p for p in _parameters(target) if p.default is not p.empty and p.name not in (*DATA, *OF_THE_TRAINER)]
        return plugins.with_options(name, target, options, optional)
    make = plugins.with_options(name, target, options, _parameters(target))
    try:
        return make()
    except Exception as error:  # the maker is a stranger's and may refuse its settings with anything; the launch stops
        raise UserError(f"{name!r} refused its settings with {type(error).__name__}: {error}") from error


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Those that have a name and can be given by it."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p for p in inspect.signature(function).parameters.values() if p.kind in named]


def _open(function: Callable[..., Any]) -> bool:
    """Whether it takes keyword arguments of any name."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def _takes_data(function: Callable[..., Any]) -> bool:
    return _open(function) or any(p.name in DATA for p in _parameters(function))
