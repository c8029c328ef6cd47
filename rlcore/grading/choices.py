r"""Reads which option of a multiple-choice question an answer picks: by its letter, its text, or both. Serves `graders`.

    B    (b)    Option B.    \text{(B)}    B) Paris    Paris

The whole answer must be that. `B or C`, `not B`, `AB` and a sentence with a letter in it pick nothing, and neither does a
letter before the text of another option. What is a letter and also the text of an option is the letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any


def options(given: Any) -> dict[str, str]:
    """The text of each letter, of what a data set has: a list of texts, an object of texts by letter, or one of two lists,
    `label` and `text` (ARC's). None has none. Raises ValueError for anything else, and where two options say the same."""
    match given:
        case None:
            return {}
        case {"label": list(letters), "text": list(texts)} if len(given) == 2 and len(letters) == len(texts):
            pairs = list(zip(letters, texts, strict=True))
        case Mapping():
            pairs = list(given.items())
        case list(texts) if len(texts) <= len(ascii_uppercase):
            pairs = list(zip(ascii_uppercase, texts, strict=False))
        case _:
            raise ValueError(f"`options` is no list or object of texts but {str(given)[:40]}")
    known = {str(letter).upper(): _plain(str(text)).casefold() for letter, text in pairs}
    if not all(known.values()) or len(set(known.values())) < len(pairs):
        raise ValueError("of its `options` two are the same, or one is empty")
    return known


def pick(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the one option that the answer picks, None where it picks none. Without options any letter alone is one."""
    text = _plain(answer)
    found = _LETTER.fullmatch(text)
    letter = next(filter(None, found.group(1, 2, 3))).upper() if found else ""
    rest = found["rest"].casefold() if found else ""
    if letter and not rest and (letter in options or not options):
        return letter
    said = next((each for each, option in options.items() if option == text.casefold()), None)
    return letter if said is None and rest and rest == options.get(letter) else said


_WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf)|mbox)\s*\{([^{}]*)\}")
_LETTER = re.compile(
    r"(?:(?:option|choice|answer)\s+)?(?:\(\s*([A-Z0-9])\s*\):?|\[\s*([A-Z0-9])\s*\]:?|([A-Z0-9])(?:\s*[).:]|$))\s*(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)


def _plain(text: str) -> str:
    return " ".join(_WRAPPED.sub(r"\1", text).split()).strip(" .,;*$\"'`")
