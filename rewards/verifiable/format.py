"""Whether a completion keeps to the form that the prompt asked for: 1 if it does, 0 with the reason if not.

`think_answer` is the form of DeepSeek-R1 (arXiv 2501.12948, table 1), `<think>…</think> <answer>…</answer>`; `think_tool_call`
that of ToolRL (arXiv 2504.13958), with `<tool_call>` in its place; `closed_think` asks that thoughts end once, for models whose
prompt begins them; `boxed` asks for an answer in `\\boxed{}`. It says nothing about the answer being right: that is `answer`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from rlcore.errors import UserError, nearest
from rlcore.grading.extract import extract
from rlcore.protocols import Reward
from rlcore.types import Group, Score, Scored


class Format(Reward):
    """`style`: "think_answer" or "think_tool_call", each of the four tags exactly once and in this order; "closed_think", one
    </think>; or "boxed", at least one box that closes, outside the thoughts. Raises UserError for another style."""

    def __init__(self, *, style: str = "think_answer") -> None:
        self._fault = fault_of("format", style)

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group."""
        faults = [self._fault(completion.text) for group in groups for completion in group.completions]
        return [Scored(float(not fault), fault) for fault in faults]


def fault_of(name: str, style: str) -> Callable[[str], str]:
    """What tells of a text what is wrong with it in this style; empty where nothing is. Raises UserError, for the reward of
    this name, for another style."""
    if style not in _FAULTS:
        raise UserError(f"{name}: there is no style {style!r}{nearest(style, list(_FAULTS))}")
    return _FAULTS[style]


def tags_fault(text: str, tag: str) -> str:
    """What is wrong with the text as thoughts and then what `tag` holds; empty where nothing is."""
    tags = ("<think>", "</think>", f"<{tag}>", f"</{tag}>")
    for each in tags:
        if (count := text.count(each)) != 1:
            return f"{count} times {each}"
    places = [text.index(each) for each in tags]
    return "" if places == sorted(places) else "tags out of order"


def _closed_fault(text: str) -> str:
    return "" if (count := text.count("</think>")) == 1 else f"{count} times </think>"


def _boxed_fault(text: str) -> str:
    return "" if extract(text, ["boxed"]) else "no box"


_FAULTS: dict[str, Callable[[str], str]] = {
    "think_answer": functools.partial(tags_fault, tag="answer"),
    "think_tool_call": functools.partial(tags_fault, tag="tool_call"),
    "closed_think": _closed_fault,
    "boxed": _boxed_fault,
}
