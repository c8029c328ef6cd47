"""`job: in_context`: how well a model labels an input by the demonstrations before it, by their number K and their layout
(`rollout.demonstrations`). Of a recipe's episodes, for each layout and K, with the first K demonstrations of each,

accuracy_LAYOUT_K    share in which the right label is the likeliest of the episode's labels
generated_LAYOUT_K   share in which greedy decoding writes it
own_LAYOUT_K         probability that the model gives a demonstration's own label where the original stands, on average: what it
                     makes of the other demonstrations that it sees; near 1 where it sees the label itself
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from rlcore.data.mixture import load as load_problems
from rlcore.errors import UserError
from rlcore.prompts import Prompter, without_trailing_eos
from rlcore.protocols import Tokens
from rlcore.recipe.schema import InContext, Layout
from rlcore.repro.in_context import QUANTITIES
from rlcore.run.console import watched
from rlcore.types import Problem
from rollout.demonstrations import arrange
from rollout.in_context import Reader


@dataclass(frozen=True)
class Demonstration:
    asked: Tokens
    label: Tokens
    after: Tokens

    @property
    def block(self) -> Tokens:
        return (*self.asked, *self.label, *self.after)


@dataclass(frozen=True)
class Episode:
    """An episode's text in tokens."""

    prefix: Tokens
    demonstrations: Sequence[Demonstration]
    query: Tokens
    labels: Sequence[Tokens]
    answer: int  # of the labels, the right one

    @property
    def room(self) -> int:
        """The most tokens that follow the demonstrations."""
        return len(self.query) + max(map(len, self.labels))


def plan(recipe: InContext, prompter: Prompter, context: int) -> list[Episode]:
    """The episodes, drawn from the recipe's data with its seed. Raises UserError for a prompt that is a chat, for problems that
    are no episodes or have too few demonstrations, where there are fewer than asked for, and for what is longer than
    `context`."""
    if prompter.chat:
        raise UserError("demonstrations are blocks of plain text, and the model has a chat template: set prompt.chat=plain")
    problems = load_problems(recipe.data)
    if len(problems) < recipe.episodes:
        raise UserError(f"data has {len(problems)} episodes, and episodes is {recipe.episodes}: lower it")
    drawn = random.Random(recipe.seed).sample(problems, recipe.episodes)
    episodes = [_episode(problem, prompter, recipe.written, max(recipe.demonstrations)) for problem in drawn]
    longest = max(_longest(recipe, episode) for episode in episodes)
    if longest > context:
        raise UserError(
            f"{max(recipe.demonstrations)} demonstrations with their replicas are up to {longest} tokens, and the "
            f"model's context is {context}: lower demonstrations"
        )
    return episodes


def describe(recipe: InContext, episodes: Sequence[Episode], prompter: Prompter) -> Iterator[str]:
    yield f"{len(episodes)} episodes; demonstrations: {', '.join(map(str, recipe.demonstrations))}"
    yield f"layouts: {', '.join(recipe.layouts)}; at most {max(_longest(recipe, each) for each in episodes)} tokens"
    first = episodes[0]
    shown = [token for each in first.demonstrations[: recipe.demonstrations[0]] for token in each.block]
    ids = [*first.prefix, *shown, *first.query]
    yield f"first prompt, {len(ids)} tokens: {prompter.tokenizer.decode(ids)!r}"
    yield f"token ids: {ids}"
    yield f"labels: {', '.join(repr(prompter.tokenizer.decode(label)) for label in first.labels)}"


def in_context(recipe: InContext, episodes: Sequence[Episode], model: PreTrainedModel) -> dict[str, float]:
    """The metrics."""
    totals: dict[str, float] = defaultdict(float)
    with torch.inference_mode(), watched("reading episodes", len(episodes)) as progress:
        for episode in episodes:
            for layout in recipe.layouts:
                for k in recipe.demonstrations:
                    for what, value in zip(QUANTITIES, _measure(model, episode, layout, k), strict=True):
                        totals[f"{what}_{layout}_{k}"] += value / len(episodes)
            progress(1)
    return dict(totals)


def _measure(model: PreTrainedModel, episode: Episode, layout: Layout, k: int) -> tuple[float, float, float]:
    """In the order of QUANTITIES."""
    demonstrations = episode.demonstrations[:k]
    shown = arrange(layout, episode.prefix, [each.block for each in demonstrations])
    reader = Reader(model, shown, episode.room, rows=len(episode.labels))
    likelihoods, greedy = reader.labels(episode.query, episode.labels)
    before = [int(at) + len(each.asked) - 1 for at, each in zip(shown.originals, demonstrations, strict=True)]
    own = [reader.probability(at, each.label) for at, each in zip(before, demonstrations, strict=True)]
    return float(likelihoods.argmax() == episode.answer), float(greedy[episode.answer]), sum(own) / k


def _episode(problem: Problem, prompter: Prompter, written: str, most: int) -> Episode:
    """Each piece of text is encoded by itself: where they meet, no token spans both."""
    pairs, labels = problem.meta.get("demonstrations"), problem.meta.get("labels")
    if pairs is None or labels is None:
        raise UserError(f"problem {problem.id} has no demonstrations and labels: use data of episodes, such as classification")
    if len(pairs) < most:
        raise UserError(f"problem {problem.id} has {len(pairs)} demonstrations, and {most} are asked for")

    def encoded(text: str) -> Tokens:
        return tuple(prompter.tokenizer(text, add_special_tokens=False).input_ids)

    before, after = written.split("{answer}")

    def asked(text: str) -> Tokens:
        return encoded(before.replace("{problem}", prompter.user(Problem("", text, ""))))

    tokenizer, system = prompter.tokenizer, prompter.spec.system
    opening = tokenizer(f"{system}\n\n" if system else "").input_ids
    return Episode(
        prefix=tuple(without_trailing_eos(opening, tokenizer.eos_token_id)),
        demonstrations=[Demonstration(asked(text), encoded(label), encoded(after)) for text, label in pairs],
        query=asked(problem.prompt),
        labels=[encoded(label) for label in labels],
        answer=list(labels).index(problem.answer),
    )


def _longest(recipe: InContext, episode: Episode) -> int:
    """Tokens of the episode with the most demonstrations and their replicas."""
    blocks = [len(each.block) for each in episode.demonstrations[: max(recipe.demonstrations)]]
    replicas = 0 if recipe.layouts == ["plain"] else sum(blocks[1:])
    return len(episode.prefix) + replicas + sum(blocks) + episode.room
