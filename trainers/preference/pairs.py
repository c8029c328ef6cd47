"""The pairs that a policy learns from and is measured on, as tokens, from a recipe's preference data.

Prompts, not pairs, are held out: two pairs of one prompt are too alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlcore import plugins
from rlcore.batch import GradedBatch, TrainingBatch, pad
from rlcore.conversation import ConversationPrompter
from rlcore.data.overlap import decontaminate
from rlcore.data.preferences import Preference as Pairing
from rlcore.errors import UserError
from rlcore.recipe.schema import Preference, Source
from rlcore.run.console import say
from rlcore.types import Sampling
from trainers.supervised import is_held_out


@dataclass(frozen=True)
class Pair:
    """Token ids; the answers with their end of turn, where they were not cut."""

    id: str
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    meta: Mapping[str, Any]  # what the data knows of the pair


@dataclass(frozen=True)
class Material:
    """What is learned from, and what it is measured on: pairs of other prompts."""

    train: list[Pair]
    validation: list[Pair]


def load_pairs(sources: Sequence[Source]) -> list[Pairing]:
    """Raises UserError for a source of anything else."""
    found = []
    for source in sources:
        loaded = plugins.bind("rlcore.data.formats", source.name, source.options)()
        if stranger := next((each for each in loaded if not isinstance(each, Pairing)), None):
            raise UserError(f"{source.name} holds no preference pairs, but {type(stranger).__name__}s: give another source")
        found += loaded
    return found


def material(recipe: Preference, prompter: ConversationPrompter, context: int) -> Material:
    """`context`: what the model can read, in tokens, where that is less than `max_length`.

    Says what was dropped or cut, and why. Raises UserError where nothing is left on a side."""
    found, elsewhere = _usable(load_pairs(recipe.data)), _usable(load_pairs(recipe.evaluated_on))
    sides: tuple[list[Pairing], list[Pairing]]
    if elsewhere:
        clean = decontaminate(found, [prompt_of(pair) for pair in elsewhere], text=prompt_of)
        say(f"pairs of prompts that are not evaluated on: {clean}")
        sides = clean.kept, elsewhere
    else:
        held = [is_held_out(prompt_of(pair), recipe.validation) for pair in found]
        apart = list(zip(found, held, strict=True))
        sides = [pair for pair, out in apart if not out], [pair for pair, out in apart if out]
    train, validation = (_encoded(side, min(recipe.max_length, context), prompter) for side in sides)
    if not train or not validation:
        cause = "give more data" if sides[0] or not found else "all of their prompts are evaluated on too"
        raise UserError(f"{len(train)} pairs are left to learn from and {len(validation)} to measure on: {cause}")
    return Material(train, validation)


def prompt_of(pair: Pairing) -> str:
    return "\n\n".join(message.content for message in pair.prompt)


def _usable(pairs: Sequence[Pairing]) -> list[Pairing]:
    usable = [pair for pair in pairs if "unusable" not in pair.meta]
    if len(usable) < len(pairs):
        reasons = sorted({str(pair.meta["unusable"]) for pair in pairs if "unusable" in pair.meta})
        say(f"{len(pairs) - len(usable)} of {len(pairs)} pairs dropped: {', '.join(reasons)}")
    return usable


def _encoded(pairs: Sequence[Pairing], most: int, prompter: ConversationPrompter) -> list[Pair]:
    """Cut where they end beyond so many tokens: what max_length and the model's context allow."""
    encoded, cut, dropped = [], 0, 0
    for pair in pairs:
        prompt = prompter.render_conversation(pair.prompt)
        whole = [prompter.complete(answer) for answer in (pair.chosen, pair.rejected)]
        chosen, rejected = (answer[: max(0, most - len(prompt))] for answer in whole)
        if not chosen or chosen == rejected:
            dropped += 1
            continue
        cut += [chosen, rejected] != whole
        encoded.append(Pair(pair.id, prompt, chosen, rejected, pair.meta))
    if cut:
        say(f"{cut} of {len(pairs)} pairs have answers that are cut: max_length and the model's context allow {most} tokens")
    if dropped:
        say(f"{dropped} of {len(pairs)} pairs dropped: {most} tokens leave nothing of them, or nothing that differs")
    return encoded


def batch_of(pairs: Sequence[Pair], numbers: Sequence[int], reference: Sequence[Tensor] | None) -> TrainingBatch:
    """As the learner takes them: the answers of a pair one after the other, the better first. `numbers` tell the pairs apart,
    and so `GradedBatch.group`; `reference` has the log-probs (t,) of each answer's tokens, where the loss asks for them."""
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    tokens = pad(answers, torch.long)
    present = pad([(1,) * len(answer) for answer in answers], torch.float32)
    graded = GradedBatch(
        prompt_ids=[pair.prompt for pair in pairs for _ in range(2)],
        tokens=tokens,
        present=present,
        loss_mask=present.clone(),
        rollout_logprobs=torch.zeros(tokens.shape),
        versions=torch.zeros(tokens.shape, dtype=torch.long),
        truncated=torch.zeros(len(answers), dtype=torch.bool),
        sampling=Sampling(),
        group=torch.tensor(numbers).repeat_interleave(2),
        rewards={},
        accuracy=None,
    )
    beside = None if reference is None else pad([row.tolist() for row in reference], torch.float32)
    return TrainingBatch(graded, torch.zeros(tokens.shape), beside)
