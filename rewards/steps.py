r"""Where the steps of a completion end: found in its text, never among its tokens.

A step is what stands between two separators. It reaches up to the next step's first character, its separator included, and is
judged without surrounding blanks. So

    a separator that is fused with punctuation (".\n\n" as one token)     ends the step in that token
    separators that follow one another, or blanks between them            make no step; they belong to the one before
    no separator                                                          all of the text is one step
    a text that the token limit cut                                       its last step is judged as it stands
    an empty text                                                         has no steps
    <think> and </think>                                                  are cut out of the steps that hold them; a step that
                                                                          is nothing else belongs to the one before

With `part: answer` only what follows the last </think> has steps, and a completion whose thoughts never end has none.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = Literal["all", "answer"]
_TAG = re.compile(r"</?think>")


@dataclass(frozen=True, slots=True)
class Step:
    text: str
    end: int  # characters of the completion up to where the next step begins


def split(text: str, separator: str, part: Part = "all") -> list[Step]:
    """The last step ends with the text."""
    begin = 0
    if part == "answer" and "<think>" in text:
        begin = text.rfind("</think>") + len("</think>") if "</think>" in text else len(text)
    found: list[Step] = []
    for number, piece in enumerate(re.split(f"((?:{re.escape(separator)})+)", text[begin:])):
        if number % 2 == 0 and (said := _TAG.sub("", piece).strip()):  # the others are separators
            found.append(Step(said, begin))
        begin += len(piece)
    ends = [step.end for step in found[1:]] + [len(text)]
    return [Step(step.text, end) for step, end in zip(found, ends, strict=False)]


def last_tokens(steps: Sequence[Step], token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Of each step, the index of the token that its last character is in; of the last step, the completion's last token, which
    ends it or was the last that the limit let through."""
    reach = list(itertools.accumulate(_characters(token_ids, tokenizer)))
    places = [next((i for i, n in enumerate(reach) if n >= step.end), len(token_ids) - 1) for step in steps[:-1]]
    return [*places, len(token_ids) - 1] if steps else []


def _characters(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """How many characters of the text each token adds, as one decodes them one after the other. A token that ends within a
    character adds it with the token that completes it."""
    counts: list[int] = []
    first = known = 0  # what is decoded anew with each token: not all of the completion, but since the last whole character
    for i in range(len(token_ids)):
        before, now = _decoded(tokenizer, tuple(token_ids[first:known])), _decoded(tokenizer, tuple(token_ids[first : i + 1]))
        if now.endswith("\ufffd"):
            counts.append(0)
            continue
        counts.append(len(now) - len(before))
        first, known = known, i + 1
    return counts


@lru_cache(maxsize=2**16)
def _decoded(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    """Few tokens, and often the same ones."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))
