"""When two problems are the same question, the refusal to evaluate on what a model was trained on, and decontamination.

Used by `rlcore.data.mixture` (repeats within a source), `rlcore.data.splits` and by everything that trains and evaluates.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from rlcore.errors import UserError
from rlcore.types import Problem

T = TypeVar("T")
_ALIKE = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "‐": "-", "‑": "-", "–": "-", "—": "-", "−": "-"})
_LATEX_SPACE = re.compile(r"(?<!\\)\\[!,;: ]")
_PUNCTUATION_AFTER_WORD = re.compile(r"""(?<=[\w)\]}$"'])[.,;:?!]+(?=[\s\\$]|$)""")
_SPACE_BESIDE_SYMBOL = re.compile(r"(?<!\w) | (?!\w)")


def normalise(text: str) -> str:
    """Case, white space, Unicode form, kinds of quotes and dashes, and the punctuation after a word do not matter.

    All other punctuation does: 3-4, 3/4 and 3.4 are three questions, and a maze is nothing but punctuation.
    """
    text = unicodedata.normalize("NFKC", text).lower().translate(_ALIKE)
    text = _PUNCTUATION_AFTER_WORD.sub("", _LATEX_SPACE.sub(" ", text))
    return _SPACE_BESIDE_SYMBOL.sub("", " ".join(text.split()))


class Decontaminated(NamedTuple, Generic[T]):
    """What remains and what was taken out, each in its old order; `str` reports how many."""

    kept: list[T]
    dropped: list[T]

    def __str__(self) -> str:
        total = len(self.kept) + len(self.dropped)
        return f"{len(self.kept)} of {total} remain, {len(self.dropped)} dropped for overlap"


def decontaminate(items: Iterable[T], against: Iterable[str], *, text: Callable[[T], str]) -> Decontaminated[T]:
    """Take out the items whose problem is among the texts `against`: of training data, that which is evaluated.

    `text` gives an item's problem. Texts that `normalise` makes equal are one problem.
    """
    others = set(map(normalise, against))
    done = Decontaminated[T]([], [])
    for item in items:
        (done.dropped if normalise(text(item)) in others else done.kept).append(item)
    return done


def refuse_overlap(train: Sequence[Problem], evaluation: Sequence[Problem]) -> None:
    """Raise UserError if an evaluation problem is among the training problems."""
    shared = decontaminate(evaluation, [problem.prompt for problem in train], text=_prompt).dropped
    if shared:
        example = shared[0]
        trained = decontaminate(train, [example.prompt], text=_prompt).dropped[0]
        raise UserError(
            f"{len(shared)} of {len(evaluation)} evaluation problems are in the training data (evaluation {example.id} is "
            f"training {trained.id}): evaluate on another split or source, or take them out of one side"
        )


def _prompt(problem: Problem) -> str:
    return problem.prompt
