"""A reward of ours for TRL's `reward_funcs` (GRPOTrainer, RLOOTrainer; TRL 1.16). `from_trl` is the other direction.

    reward_funcs=[as_trl(Answer(), tokenizer=tokenizer), as_trl(Overlong(max_tokens=512, buffer=128))]
    reward_funcs=[as_trl(answer, tokenizer=tokenizer), as_trl(Kimi(), verifiable=answer, tokenizer=tokenizer)]

The dataset's columns become the problem's fields: `answer` (which verifiable rewards cannot do without), `grader` and `id`
where there are any; the rest is `meta`, such as the length `budget` that some rewards read. Rows that follow one another with
the same prompt and columns are the group of one problem. A reward that compares the members of a group needs each process to
hold whole groups: batches that `num_generations` divides.

What TRL does not tell its reward functions is not there: prompt ids are empty, log-probs are NaN, weight versions are 0, and
the sampling parameters are the default ones.

Invalid becomes None, by which TRL understands that this reward has no say, and adds up the others. The share of those is
reported as the metric `rewards/NAME/invalid`, and what the reward says about each completion as the column `NAME says` of TRL's
table of completions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rewards.compose import scored, with_accuracy
from rewards.from_trl import OF_THE_TRAINER
from rlcore.errors import UserError
from rlcore.protocols import Reward, StatefulReward
from rlcore.types import Completion, Group, Problem, Sampling, Scored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def as_trl(
    reward: Reward, *, verifiable: Reward | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Callable[..., list[float | None]]:
    """A reward function that gives each completion's value, or None where the reward could not judge it. A value that the
    reward spreads over tokens is given as its sum. The function's `__name__` is the name that the reward has in recipes.

    `verifiable` is scored first, for rewards that read `Group.accuracy`. `tokenizer` is the trainer's: with it, texts are
    decoded from the completions' ids, and a completion that ends with neither EOS nor padding is truncated. Without it texts
    are those that TRL passes, and nothing is truncated: a number at which the token limit fell may count as an answer.

    Raises UserError for a reward that learns from batches, and for one that reads accuracy where nothing gives it; the function
    does so for rows without the `answer` that a verifiable reward needs, and for messages that hold more than text.
    """
    name = _name(reward)
    for component in (reward, verifiable):
        if isinstance(component, StatefulReward):
            raise UserError(
                f"{_name(component)!r} learns from the batches it scored, which TRL has no place for: train with rlcore"
            )
    if verifiable is not None and not verifiable.verifiable:
        raise UserError(f"as_trl: {_name(verifiable)!r} is not verifiable: its values are no accuracy")
    if reward.reads_accuracy and verifiable is None:
        raise UserError(f"as_trl: {name!r} reads which completions are right: add the reward that tells, verifiable=Answer()")
    verifies = reward.verifiable or verifiable is not None
    if tokenizer is not None:
        reward.begin(tokenizer)

    def function(
        *, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: Any
    ) -> list[float | None]:
        rows = [{k: values[i] for k, values in columns.items() if k not in OF_THE_TRAINER} for i in range(len(prompts))]
        problems = [_problem(name, prompt, row, verifies) for prompt, row in zip(prompts, rows, strict=True)]
        groups = _groups(problems, completions, completion_ids, tokenizer)
        if verifiable is not None:
            groups = with_accuracy(groups, scored(_name(verifiable), verifiable, groups, None))
        scores = scored(name, reward, groups, None)
        values = [score.value if isinstance(score, Scored) else None for score in scores]
        if "log_metric" in columns:
            columns["log_metric"](f"rewards/{name}/invalid", values.count(None) / len(values))
        if "log_extra" in columns:
            columns["log_extra"](f"{name} says", [score.reason for score in scores])
        return values

    function.__name__ = name
    return function


def _name(reward: Reward) -> str:
    """A name in a recipe is that of the class's file; the class's own where that is another."""
    own, file = type(reward).__name__, type(reward).__module__.rpartition(".")[2]
    return file if file.replace("_", "") == own.lower() else own


def _problem(name: str, prompt: str | Sequence[Mapping[str, Any]], row: Mapping[str, Any], verifies: bool) -> Problem:
    text = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
    if verifies and row.get("answer") is None:
        raise UserError(
            f"{name!r} needs the right answer in a column `answer`, and the row {text[:40]!r} has "
            f"{', '.join(row) or 'no columns'}: rename the dataset's column"
        )
    meta = {key: value for key, value in row.items() if key not in ("id", "answer", "grader")}
    return Problem(str(row.get("id", text)), text, str(row.get("answer", "")), str(row.get("grader", "math")), meta)


def _groups(
    problems: Sequence[Problem],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase | None,
) -> list[Group]:
    rows = zip(problems, completions, completion_ids, strict=True)
    return [
        Group(problem, [_completion(problem, k, said, ids, tokenizer) for k, (_, said, ids) in enumerate(members)])
        for problem, members in itertools.groupby(rows, key=lambda row: row[0])
    ]


def _completion(
    problem: Problem, number: int, said: Any, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase | None
) -> Completion:
    if tokenizer is None:
        text, ended = _text(said), True
    else:
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        ended = not {tokenizer.eos_token_id, tokenizer.pad_token_id}.isdisjoint(ids[-1:])
    return Completion(
        problem_id=problem.id,
        sample=number,
        seed=0,
        prompt_ids=(),
        token_ids=tuple(ids),
        loss_mask=(1,) * len(ids),
        logprobs=(math.nan,) * len(ids),
        versions=(0,) * len(ids),
        sampling=Sampling(),
        finish_reason="stop" if ended else "length",
        text=text,
    )


def _text(said: str | Sequence[Mapping[str, Any]]) -> str:
    """Of a completion as TRL passes it: a string, or one message."""
    if isinstance(said, str):
        return said
    if len(said) != 1 or set(said[0]) != {"role", "content"}:
        raise UserError(
            "as_trl: TRL took thoughts or tool calls out of a completion's text, which a reward has to see as it was sampled: "
            "give as_trl the trainer's tokenizer"
        )
    return str(said[0]["content"])
