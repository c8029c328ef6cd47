"""What a reward model reads, and where in it its scores stand.

    head: text     a problem, the steps before, and what is to be judged, as one text: the score is at its last token
    head: token    a problem and its steps, each with the separator after it: every step's score is at the end of its separator

So with a token head one pass judges all steps of a solution, and solutions that begin alike are read once as far as one is the
beginning of the other. Where a step ends is found in the text, not among the tokens: a separator may be part of a token that
begins before it (".\\n\\n"). Steps that an hrm judges as one stand there as one, with a space between them: with the separator
they would ask what is asked of the last of them alone.

A model's own way of writing is kept beside its weights, in `reward_model.json`, with the temperature that calibrates what it
says: whoever scores with it writes what it was trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from rlcore.data.step_examples import Kind
from rlcore.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Head = Literal["text", "token"]
_PLACE = re.compile(r"\{(problem|previous|current|steps)\}")
FILE = "reward_model.json"
WHOLE = "Question is as follows:\n{problem}\n\nThe answer is as follows:\n{current}\n"
STEP = (
    "Question:\n{problem}\n\nLet's break it down step by step!\n\nPrevious reasoning:\n{previous}\n\n"
    "Now, let's focus on the current step:\n{current}"
)  # these two are what the HRM's code was trained with (arXiv 2503.13551)
RUNNING = "{problem}\n\n{steps}"
MERGED = " "  # between the steps that are one in a running text


class Asked(NamedTuple):
    """Is `current`, one step or several, right after `previous`?"""

    problem: str
    previous: tuple[str, ...]
    current: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A text to be read: its token ids, the tokens at which scores stand, and what each of these answers, by its number."""

    ids: tuple[int, ...]
    ends: tuple[int, ...]
    asked: tuple[int, ...]

    def within(self, tokens: int) -> Row | None:
        """Up to the last end that lies in the first so many tokens; None where there is none."""
        count = sum(end < tokens for end in self.ends)
        if not count:
            return None
        return replace(self, ids=self.ids[: self.ends[count - 1] + 1], ends=self.ends[:count], asked=self.asked[:count])


@dataclass(frozen=True)
class JudgedText:
    kind: Kind
    head: Head
    template: str
    separator: str
    temperature: float = 1.0

    def rows(self, asked: Sequence[Asked], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
        """What to read so that everything asked is answered once."""
        if not asked:
            return []
        if self.head == "text":
            texts: list[list[int]] = tokenizer([self.write(each) for each in asked]).input_ids
            return [Row(tuple(ids), (len(ids) - 1,), (i,)) for i, ids in enumerate(texts)]
        solutions = packed([self._merged(each) for each in asked])
        written = [self._running(problem, steps) for problem, steps, _ in solutions]
        read = tokenizer([text for text, _ in written], return_offsets_mapping=True)
        return [
            _row(ids, spans, {places[n]: number for n, number in ends.items()})
            for ids, spans, (_, places), (_, _, ends) in zip(
                read.input_ids, read["offset_mapping"], written, solutions, strict=True
            )
        ]

    def write(self, asked: Asked) -> str:
        """For a head of texts. An orm reads all of a solution, as far as it goes."""
        previous, current = asked.previous, asked.current
        if self.kind == "orm":
            previous, current = (), previous + current
        join = self.separator.join
        return self._filled({"problem": asked.problem, "previous": join(previous), "current": join(current)})

    def _merged(self, asked: Asked) -> Asked:
        """For a head of tokens."""
        return asked._replace(current=(MERGED.join(asked.current),)) if self.kind == "hrm" and asked.current else asked

    def _running(self, problem: str, steps: tuple[str, ...]) -> tuple[str, dict[int, int]]:
        """The text of all steps, and the character at which it ends after so many of them."""
        places, text = {}, self._filled({"problem": problem, "steps": ""})
        for count, step in enumerate(steps, 1):
            text += step + self.separator
            places[count] = len(text) - 1
        return text, places

    def _filled(self, parts: dict[str, str]) -> str:
        # At once: a problem may hold {current} itself.
        return _PLACE.sub(lambda place: parts.get(place[1], place[0]), self.template)

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def _row(ids: Sequence[int], spans: Sequence[tuple[int, int]], asked: dict[int, int]) -> Row:
    """`spans`: of each token, the characters from which and up to which it stands; `asked`: numbers by characters."""
    token_of = {char: i for i, (first, end) in enumerate(spans) for char in range(first, end)}
    places = sorted(asked)
    return Row(tuple(ids), tuple(token_of[place] for place in places), tuple(asked[place] for place in places))


def packed(asked: Sequence[Asked]) -> list[tuple[str, tuple[str, ...], dict[int, int]]]:
    """Problem, steps, and what is asked after how many of them: the longest first, which answer what is asked of their
    beginnings too. The same thing asked twice is read twice. Raises ValueError where there is no step to be judged."""
    waiting: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for i, each in enumerate(asked):
        if not each.current:
            raise ValueError(f"asked[{i}] has no step to be judged")
        waiting.setdefault((each.problem, each.previous + each.current), []).append(i)
    result = []
    for problem, steps in sorted(waiting, key=lambda key: -len(key[1])):
        while waiting[problem, steps]:
            beginnings = ((n, waiting.get((problem, steps[:n]))) for n in range(1, len(steps) + 1))
            result.append((problem, steps, {n: numbers.pop() for n, numbers in beginnings if numbers}))
    return result


def load_judged_text(folder: Path) -> JudgedText:
    """Raises UserError for a model that `job: reward_model` did not write."""
    try:
        return JudgedText(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{folder} has no {FILE}: it is no reward model of `job: reward_model`") from None
