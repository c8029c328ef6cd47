"""What the steps of a completion are worth, by a reward model (`rewards/judges`): a process reward.

The steps are found in the text (`rewards.steps`), each is judged after those before it, and `rewards.credit` says what each is
paid. That stands at the token in which the step ends; their sum is the component's value, also where there is no tokenizer to
find tokens with (`as_trl`). A completion without steps is paid 0, and its reason says so: a verifiable reward beside this one
tells such answers from good ones, and no reward model does.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import PositiveFloat

from rewards.accuracy import known_accuracy
from rewards.credit import Credit, paid
from rewards.judge import Judge, Judgement, named_judge, probability
from rewards.judged_text import Asked
from rewards.steps import Part, Step, last_tokens, split
from rlcore.errors import UserError
from rlcore.protocols import Reward
from rlcore.types import Completion, Group, Invalid, Score, Scored

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
        self.make_judge = named_judge(judge)
        self._judge: Judge | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.separator, self._part = separator, part
        self.reads_accuracy = credit == "renorm"
        self._credit, self._settings = credit, {"temperature": temperature, "threshold": threshold}

    def begin(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def judge_with(self, judge: Judge) -> None:
        """Given what `make_judge` made, here or in other processes. Raises UserError where it learned other steps, or
        none."""
        judge.check_separator(self.separator)
        if judge.of_solutions and self._credit != "last":
            raise UserError(
                f"process: this reward model judges whole solutions, and {self._credit} pays for each step: set credit: last"
            )
        self._judge = judge

    @property
    def judge(self) -> Judge:
        """Who judges: what `judge_with` was given, else what is made here when it is first needed."""
        if self._judge is None:
            self.judge_with(self.make_judge())
        assert self._judge is not None
        return self._judge

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group; all steps of the batch are judged together."""
        accuracy = self._accuracy(groups)
        told = [(group.problem, completion) for group in groups for completion in group.completions]
        steps = [split(completion.text, self.separator, self._part) for _, completion in told]
        asked = [
            Asked(problem.prompt, tuple(step.text for step in each[:i]), (each[i].text,))
            for (problem, _), each in zip(told, steps, strict=True)
            for i in range(len(each))
        ]
        judgement, ends = self.judge.judge(asked), list(itertools.accumulate(map(len, steps)))
        return [
            self._score(completion, each, judgement.of(slice(end - len(each), end)), right)
            for (_, completion), each, end, right in zip(told, steps, ends, accuracy, strict=True)
        ]

    def _accuracy(self, groups: Sequence[Group]) -> list[float | None]:
        """Of each completion, None where nothing reads it."""
        if self._credit != "renorm":
            return [None for group in groups for _ in group.completions]
        return [a for group in groups for a in known_accuracy("process: credit renorm", group)]

    def _score(self, completion: Completion, steps: Sequence[Step], judgement: Judgement, accuracy: float | None) -> Score:
        """`judgement` is on these steps; what the judge measured is told as its mean over them."""
        if not steps:
            return Scored(0.0, "no steps", measured={"steps": 0})
        probabilities = [probability(z) for z in judgement.log_odds if z is not None]
        if len(probabilities) < len(steps):
            return Invalid("longer than what the reward model can read")
        rewards = paid(self._credit, probabilities, **self._settings, accuracy=accuracy)
        worst = min(range(len(steps)), key=lambda i: probabilities[i])
        reason = f"{len(steps)} steps, the worst (P {probabilities[worst]:.2f}) is number {worst + 1}"
        means = {name: sum(values) / len(steps) for name, values in judgement.measured.items()}
        scored = Scored(sum(rewards), reason, judged=steps[worst].text, measured={"steps": len(steps)} | means)
        if self._tokenizer is None:
            return scored
        per_token = [0.0] * len(completion.token_ids)
        places = last_tokens(steps, completion.token_ids, self._tokenizer)
        for place, reward in zip(places, rewards, strict=True):
            per_token[place] += reward
        return replace(scored, per_token=tuple(per_token))
