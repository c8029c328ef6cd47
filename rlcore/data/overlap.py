"""When two problems are the same question, and the refusal to evaluate on what a model was trained on.

Used by `rlcore.data.mixture` (repeats within a source), `rlcore.data.splits` and by everything that trains and evaluates.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from rlcore.errors import UserError
from rlcore.types import Problem

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


def refuse_overlap(train: Sequence[Problem], evaluation: Sequence[Problem]) -> None:
    """Raise UserError if an evaluation problem is among the training problems."""
    trained = {normalise(problem.prompt): problem.id for problem in train}
    shared = [problem for problem in evaluation if normalise(problem.prompt) in trained]
    if shared:
        example = shared[0]
        raise UserError(
            f"{len(shared)} of {len(evaluation)} evaluation problems are in the training data (evaluation {example.id} is "
            f"training {trained[normalise(example.prompt)]}): evaluate on another split or source, or take them out of one side"
        )
