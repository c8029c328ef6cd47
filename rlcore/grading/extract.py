r"""Finds the final answer in a completion's text. `pool` asks here first; what is found goes to `graders`.

Every finder wants the last occurrence and reads the text once, so a megabyte of hostile text costs what its length costs.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence

ORDER = ("boxed", "answer_tag", "hashes", "final_answer", "last_number")
PLACES = {"json": ("json",), "tool_calls": ("tool_call",)}  # of graders whose answers stand nowhere else, by their name


def extract(text: str, order: Sequence[str]) -> str | None:
    """The answer that the first successful finder of `order` (names from `FINDERS`) sees; None where there is none.

    Thoughts are no answers: only what follows the last `</think>` is read, and nothing where a `<think>` stays open.
    """
    said = text.rpartition("</think>")[2]
    if "<think>" in said:
        return None
    for name in order:
        found = FINDERS[name](said)
        if found:
            return boxed(found) or found
    return None


_BOX_TOKEN = re.compile(
    r"\\(?:boxed|fbox)(?:\s*+(?P<box>\{)|\s++(?P<bare>[^\s${}\\]+))|(?P<escaped>\\.)|(?P<open>\{)|(?P<close>\})", re.DOTALL
)


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` or `\fbox{…}` whose braces close, or of a bare `\boxed 5`; if nested, the inner one.

    An empty box is the prompt's placeholder, repeated, and is passed over.
    """
    unclosed: list[int] = []  # where the content of each open box starts; -1 for other braces
    last, content = -1, None
    for token in _BOX_TOKEN.finditer(text):
        start, end = -1, token.start()
        match token.lastgroup:
            case "box":
                unclosed.append(token.end())
            case "open":
                unclosed.append(-1)
            case "close" if unclosed:
                start = unclosed.pop()
            case "bare":
                start, end = token.span("bare")
        if start > last and not text[start:end].isspace() and start < end:
            last, content = start, text[start:end].strip()
    return content


def _answer_tag(text: str) -> str | None:
    before, closed, _ = text.rpartition("</answer>")
    _, opened, content = before.rpartition("<answer>")
    return content.strip() if closed and opened else None


_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = rf"""(?P<number>
    (?: (?<![\w)\]}}])-\$? | \$-? )?                              # a minus after a letter, digit or bracket is an operation
    (?: \\[dt]?frac\{{-?[0-9]+\}}\{{-?[0-9]+\}}
      | (?<![\w.]) {_INTEGER} (?: \.[0-9]+ | \s?/\s?[0-9]+ )?
      | (?<![\w.]) \.[0-9]+ )
    (?: \s?\\?% )?
)"""
_LAST_NUMBER = re.compile(_NUMBER, re.VERBOSE)
_HASHES = re.compile(rf"(?<!\#)\#{{4}}[ \t]*+{_NUMBER}[ \t]*+(?:\.[ \t]*+)?$", re.VERBOSE | re.MULTILINE)


def _last_number(text: str) -> str | None:
    return _number(_LAST_NUMBER, text)


def _hashes(text: str) -> str | None:
    return _number(_HASHES, text)  # nothing but a number on its line: `#### Step 2` is a markdown heading


def _number(pattern: re.Pattern[str], text: str) -> str | None:
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0]["number"].translate(_PLAIN) if found else None


_PLAIN = str.maketrans("", "", "$,")

_STATED = re.compile(r"\banswer(?:\*\*)?(?:\s++is\b\s*+:?|\s*+:)(?:[\s*$]|\\\[|\\\()*+", re.IGNORECASE)
_STATEMENT_END = re.compile(r"\n|(?<!\\left)(?<!\\right)\.(?=[\s*$\"')<]|\\[\])]|\Z)")  # a decimal point ends no sentence


def _final_answer(text: str) -> str | None:
    """What follows the last `answer is` or `answer:`, up to the end of its sentence or line."""
    for stated in reversed(list(_STATED.finditer(text))):
        end = _STATEMENT_END.search(text, stated.end())
        answer = text[stated.end() : end.start() if end else len(text)].rstrip(" \t\r*$")
        if answer:
            return answer
    return None


def _json(text: str) -> str | None:
    """What the answer tag has, or all; of that the last block of code, or from the first bracket to the last."""
    said = _answer_tag(text) or text
    before, closed, _ = said.rpartition("```")
    _, opened, block = before.rpartition("```")
    if closed and opened:
        return re.sub(r"^\w+\s*\n", "", block).strip()  # without the language's name
    if said is not text:
        return said
    places = [place for bracket in "{[" if (place := said.find(bracket)) >= 0]
    return said[min(places) : max(map(said.rfind, "}]")) + 1] if places else None


def _tool_call(text: str) -> str | None:
    """What all tool-call tags have, one after the other."""
    blocks = (block.partition("</tool_call>") for block in text.split("<tool_call>")[1:])
    return "\n".join(content for content, closed, _ in blocks if closed).strip()


FINDERS: Mapping[str, Callable[[str], str | None]] = {
    "boxed": boxed,
    "answer_tag": _answer_tag,
    "hashes": _hashes,
    "final_answer": _final_answer,
    "last_number": _last_number,
    "json": _json,
    "tool_call": _tool_call,
}
