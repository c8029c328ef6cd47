"""Long prompts: problems and their solutions one after the other, with numbers hidden at several depths that the end asks for.

    … filler … The amber code is 48213. … filler … The amber code is 48213. The cobalt code is …

Each question is answered in the prompt itself, before the next: that the model knows an answer shows in what it expects there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlcore.errors import UserError
from rlcore.types import Problem, seed_from

NAMES = ("amber", "cobalt", "silver", "violet", "copper", "ivory", "scarlet", "olive", "golden", "purple")
DIGITS = 5


@dataclass(frozen=True)
class LongPrompt:
    ids: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]  # of each number, where its tokens stand at the end


def fillers(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, seed: int) -> list[list[int]]:
    """Texts of tokens, in an order that the seed decides. Raises UserError for a problem without a solution."""
    lacking = [problem.id for problem in problems if not problem.meta.get("solution")]
    if lacking:
        raise UserError(f"problem {lacking[0]} has no solution: long prompts are made of sources with solutions")
    texts = [f"{problem.prompt}\n{problem.meta['solution']}\n\n" for problem in problems]
    random.Random(seed_from("filler", seed)).shuffle(texts)
    return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def long_prompt(
    filler: Sequence[int], tokenizer: PreTrainedTokenizerBase, depths: Sequence[float], length: int, seed: int
) -> LongPrompt:
    """Of so many tokens, with a number at each of the depths, rising shares of the filler. Raises UserError where the filler is
    too short, or the length for what is hidden."""
    numbers = random.Random(seed_from("numbers", seed))
    values = ["".join(numbers.choices("0123456789", k=DIGITS)) for _ in depths]

    def tokens(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return ids

    hidden = [tokens(f"\nThe {name} code is {value}.\n") for name, value in zip(NAMES, values, strict=False)]
    asked = [(tokens(f"\nThe {name} code is"), tokens(f" {value}")) for name, value in zip(NAMES, values, strict=False)]
    room = length - sum(map(len, hidden)) - sum(len(question) + len(answer) for question, answer in asked)
    if room < len(depths):
        raise UserError(f"a prompt of {length} tokens has no room for {len(depths)} hidden numbers: ask for more tokens")
    if len(filler) < room:
        raise UserError(f"a prompt of {length} tokens needs {room} of filler, and data has {len(filler)}: name more")
    ids: list[int] = []
    cuts = [round(depth * room) for depth in depths]
    for start, end, fact in zip([0, *cuts], [*cuts, room], [*hidden, []], strict=True):
        ids += [*filler[start:end], *fact]
    answers = []
    for question, answer in asked:
        ids += question
        answers.append(tuple(range(len(ids), len(ids) + len(answer))))
        ids += answer
    return LongPrompt(tuple(ids), tuple(answers))
