"""What the steps of a completion are worth, by a reward model (`rewards/judges`): a process reward.

The steps are found in the text (`rewards.steps`), each is judged after those before it, and `rewards.credit` says what each is
paid. That stands at the token in which the step ends; their sum is the component's value, also where there is no tokenizer to
find tokens with (`as_trl`). A completion without steps is paid 0, and its reason says so: a verifiable reward beside this one
tells such answers from good ones, and no reward model does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import PositiveFloat

from rewards.credit import Credit, paid
from rewards.judge import load_judge
from rewards.judged_text import Asked
from rewards.steps import Part, Step, last_tokens, split
from rlcore.errors import UserError
from rlcore.protocols import Reward
from rlcore.types import Completion, Group, Score, Scored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Process(Reward):
    """`judge`: a run folder of `job: reward_model`, or a judge by name with its options. `separator`: between steps. `part`:
    all of a completion has steps, or its `answer` after the thoughts. `temperature`: T, of credit min; `threshold`: η, of
    clip."""

    pays_steps = True

    def __init__(
        self,
        *,
        judge: str | Mapping[str, Any],
        credit: Credit = "min",
        separator: str = "\n\n",
        part: Part = "all",
        temperature: PositiveFloat = 0.1,
        threshold: float = 0.0,
    ) -> None:
        if not separator:
            raise UserError("process: the separator between steps cannot be empty")
        self._judge, self._tokenizer = load_judge(judge), None
        self._separator, self._part = separator, part
        self._credit, self._settings = credit, {"temperature": temperature, "threshold": threshold}

    def begin(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group; all steps of the batch are judged together."""
        told = [(group.problem, completion) for group in groups for completion in group.completions]
        steps = [split(completion.text, self._separator, self._part) for _, completion in told]
        asked = [
            Asked(problem.prompt, tuple(step.text for step in each[:i]), (each[i].text,))
            for (problem, _), each in zip(told, steps, strict=True)
            for i in range(len(each))
        ]
        found = iter(self._judge.log_odds(asked))
        return [
            self._score(completion, each, [_probability(next(found)) for _ in each])
            for (_, completion), each in zip(told, steps, strict=True)
        ]

    def _score(self, completion: Completion, steps: Sequence[Step], probabilities: Sequence[float]) -> Score:
        if not steps:
            return Scored(0.0, "no steps")
        rewards = paid(self._credit, probabilities, **self._settings)
        worst = min(range(len(steps)), key=lambda i: probabilities[i])
        reason = f"{len(steps)} steps, the worst (P {probabilities[worst]:.2f}) is number {worst + 1}"
        if self._tokenizer is None:
            return Scored(sum(rewards), reason, judged=steps[worst].text)
        per_token = [0.0] * len(completion.token_ids)
        places = last_tokens(steps, completion.text, completion.token_ids, self._tokenizer)
        for place, reward in zip(places, rewards, strict=True):
            per_token[place] += reward
        return Scored(sum(rewards), reason, judged=steps[worst].text, per_token=tuple(per_token))


def _probability(log_odds: float) -> float:
    return 0.5 * (1 + math.tanh(log_odds / 2))
