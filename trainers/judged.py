"""The texts that a reward model learns from and is measured on, from a recipe's judged solutions.

Problems, not examples, are held out for validation: the steps of one solution are too alike.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from rewards.judged_text import RUNNING, STEP, WHOLE, Asked, JudgedText, Row
from rlcore import plugins
from rlcore.data.overlap import decontaminate
from rlcore.data.step_examples import Example, Judged, examples
from rlcore.data.trees import AnnotatedTree
from rlcore.errors import UserError
from rlcore.recipe.schema import RewardModel, Source
from rlcore.run.console import say
from rlcore.types import seed_from
from trainers.supervised import is_held_out


@dataclass(frozen=True)
class Labelled:
    """A text, and the label of each of its ends."""

    row: Row
    labels: tuple[float, ...]


@dataclass(frozen=True)
class Material:
    """What is learned from, and what it is measured on: texts of other problems."""

    train: list[Labelled]
    validation: list[Labelled]
    problems: set[str]  # of both


def judged_text(recipe: RewardModel) -> JudgedText:
    usual = RUNNING if recipe.head == "token" else WHOLE if recipe.kind == "orm" else STEP
    return JudgedText(recipe.kind, recipe.head, recipe.judging.template or usual, recipe.judging.separator)


def load_solutions(sources: Sequence[Source]) -> list[Judged]:
    return [solution for source in sources for solution in plugins.bind("rlcore.data.formats", source.name, source.options)()]


def material(recipe: RewardModel, tokenizer: PreTrainedTokenizerBase, context: int) -> Material:
    """`context`: what the model can read, in tokens, where that is less than `max_length`.

    Says what was dropped and why. Raises UserError where nothing is left on a side, or all of it has one label."""
    solutions, elsewhere = load_solutions(recipe.data), load_solutions(recipe.evaluated_on)
    _refuse_other_steps(solutions, recipe.judging.separator)
    clean = decontaminate(solutions, [solution.problem for solution in elsewhere], text=lambda solution: solution.problem)
    if elsewhere:
        say(f"solutions to problems that are not evaluated on: {clean}")
    made = [
        example
        for solution in clean.kept
        for example in examples(recipe.kind, solution, neutral=recipe.neutral, repaired=recipe.repaired)
    ]
    say(f"{len(clean.kept)} judged solutions, {len(made)} examples: {_counted(made)}")
    if len(distinct := list(dict.fromkeys(made))) < len(made):
        say(f"{len(made) - len(distinct)} examples dropped: solutions that begin alike ask them again")
        made = distinct
    if recipe.shuffle_labels:
        made = shuffled(made, recipe.seed)
    held = [is_held_out(example.problem, recipe.validation) for example in made]
    most = min(recipe.max_length, context)
    found = Material(
        labelled([example for example, out in zip(made, held, strict=True) if not out], recipe, tokenizer, most),
        labelled([example for example, out in zip(made, held, strict=True) if out], recipe, tokenizer, most),
        {example.problem for example in made},
    )
    for side, texts in (("training", found.train), ("validation", found.validation)):
        labels = [label for each in texts for label in each.labels]
        if len(set(labels)) < 2:
            cause = "give more data" if labels or not made else f"they end beyond {most} tokens: see max_length"
            raise UserError(f"the {len(labels)} {side} examples do not hold both right and wrong ones: {cause}")
    return found


def _refuse_other_steps(solutions: Sequence[Judged], separator: str) -> None:
    """What a model says that it learned is what whoever asks it has to keep to."""
    for solution in solutions:
        if isinstance(solution, AnnotatedTree) and solution.tree.separator != separator:
            found = solution.tree.separator
            raise UserError(f"the steps of tree {solution.tree.id} end with {found!r}: set judging.separator to that")


def labelled(made: Sequence[Example], recipe: RewardModel, tokenizer: PreTrainedTokenizerBase, most: int) -> list[Labelled]:
    """Without what ends beyond so many tokens, which is counted."""
    rows = judged_text(recipe).rows([Asked(e.problem, e.previous, e.current) for e in made], tokenizer)
    fitting = [short for row in rows if (short := row.within(most))]
    if lost := len(made) - sum(len(row.asked) for row in fitting):
        bound = "recipe's max_length" if most == recipe.max_length else "model's context"
        say(f"{lost} examples dropped: they end beyond {most} tokens, the {bound}")
    return [Labelled(row, tuple(made[i].label for i in row.asked)) for row in fitting]


def shuffled(made: Sequence[Example], seed: int) -> list[Example]:
    """The labels dealt out anew: the same number of each, which say nothing of the texts."""
    labels = [example.label for example in made]
    random.Random(seed_from("labels", seed)).shuffle(labels)
    return [replace(example, label=label) for example, label in zip(made, labels, strict=True)]


def _counted(made: Sequence[Example]) -> str:
    counts = Counter((example.made, bool(example.label > 0.5)) for example in made)
    return ", ".join(f"{count} {kind} {'right' if right else 'wrong'}" for (kind, right), count in sorted(counts.items()))
