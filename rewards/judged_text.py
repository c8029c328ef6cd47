"""What a reward model reads: a problem, the steps before, and what is to be judged, as one text.

A model's own way of writing it down is kept beside its weights, in `reward_model.json`, with the temperature that calibrates
its scores: whoever scores with it writes what it was trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlcore.data.step_examples import Kind
from rlcore.errors import UserError

_PLACE = re.compile(r"\{(problem|previous|current)\}")
FILE = "reward_model.json"
WHOLE = "Question is as follows:\n{problem}\n\nThe answer is as follows:\n{current}\n"
STEP = (
    "Question:\n{problem}\n\nLet's break it down step by step!\n\nPrevious reasoning:\n{previous}\n\n"
    "Now, let's focus on the current step:\n{current}"
)  # these are the prompts that the HRM's code was trained with (arXiv 2503.13551)


@dataclass(frozen=True)
class JudgedText:
    kind: Kind
    template: str
    separator: str
    temperature: float = 1.0

    def write(self, problem: str, previous: Sequence[str], current: Sequence[str]) -> str:
        parts = {"problem": problem, "previous": self.separator.join(previous), "current": self.separator.join(current)}
        return _PLACE.sub(lambda place: parts[place[1]], self.template)  # at once: a problem may hold {current} itself

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def load_judged_text(folder: Path) -> JudgedText:
    """Raises UserError for a model that `job: reward_model` did not write."""
    try:
        return JudgedText(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{folder} has no {FILE}: it is no reward model of `job: reward_model`") from None
