"""Classification that can only be learned in context: in each episode another rule gives inputs their labels.

An input has one attribute or several, a value of each: `b`, `bk` or `blue tent`. A rule looks at one of them, and shares its
values out to labels, as many to each: in one episode all that is blue or red is `3`, in another every tent is `7`.
Demonstrations have to tell both which attribute counts and what its values are called; a few of them leave it open.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveInt

from rlcore.data.splits import known_split, split_of
from rlcore.types import Problem, seed_from


@dataclass(frozen=True)
class Vocabulary:
    attributes: tuple[tuple[str, ...], ...]  # eight values each
    between: str  # the values of an input, and them and a label
    labels: tuple[str, ...]


VOCABULARIES = {
    "letters": Vocabulary((tuple("abcdefgh"), tuple("ijklmnop")), "", tuple("0123456789")),
    "words": Vocabulary(
        (
            ("red", "blue", "green", "black", "white", "yellow", "brown", "pink"),
            ("house", "table", "river", "horse", "tent", "shirt", "door", "tree"),
        ),
        " ",
        ("north", "south", "east", "west", "gold", "silver", "summer", "winter"),
    ),
}


def classification(
    *,
    split: str = "train",
    count: PositiveInt = 1000,
    demonstrations: PositiveInt = 16,
    vocabulary: Literal["letters", "words"] = "letters",
    attributes: Literal[1, 2] = 1,
    values: Literal[2, 4, 8] = 4,
    labels: Literal[2, 4, 8] = 4,
    random_labels: bool = False,
    written: bool = False,
    seed: int = 0,
) -> list[Problem]:
    """`count` episodes. `meta["demonstrations"]` are pairs of an input and its label, `meta["labels"]` the labels that there
    are; the problem is one more input. With `random_labels`, a control, demonstrations say nothing about the rule.

    With `written`, for supervised training, an episode is lines of an input and its label (`b3`, `blue tent north`): the first
    is the problem, the others the solution. No rule is in both splits."""
    known_split("classification", split)
    words = VOCABULARIES[vocabulary]
    rng = random.Random(seed_from("classification", vocabulary, split, seed))
    episodes: list[Problem] = []
    while len(episodes) < count:
        rule = _draw(words.labels, [each[:values] for each in words.attributes[:attributes]], labels, rng)
        if split_of(str(rule)) != split:
            continue
        inputs = [tuple(rng.choice(each[:values]) for each in words.attributes[:attributes]) for _ in range(demonstrations + 1)]
        pairs = [(words.between.join(each), rule.names[each[rule.attribute]]) for each in inputs]
        *shown, (asked, answer) = pairs
        possible = sorted(set(rule.names.values()))
        if random_labels:
            shown = [(text, rng.choice(possible)) for text, _ in shown]
        meta: dict[str, object] = {"demonstrations": shown, "labels": possible}
        if written:
            asked, *rest = [words.between.join(pair) for pair in (*shown, (asked, answer))]
            meta, answer = {"solution": "\n".join(rest), "unfinished": True}, ""
        id_ = f"classification/{vocabulary}/{split}/{len(episodes)}"
        episodes.append(Problem(id_, asked, answer, grader="exact", meta=meta))
    return episodes


@dataclass(frozen=True)
class Rule:
    attribute: int  # that counts
    names: dict[str, str]  # the label of each of its values


def _draw(known: Sequence[str], attributes: Sequence[Sequence[str]], labels: int, rng: random.Random) -> Rule:
    attribute = rng.randrange(len(attributes))
    values = attributes[attribute]
    names = rng.sample(known, labels) * (len(values) // labels)
    rng.shuffle(names)
    return Rule(attribute, dict(zip(values, names, strict=True)))
