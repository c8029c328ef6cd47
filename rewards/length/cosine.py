"""The cosine reward (Yeo et al. 2025, "Demystifying long chain-of-thought reasoning in LLMs", arXiv 2502.03373).

    CosFn(ℓ) = r_L + ½(r_0 − r_L)(1 + cos(πℓ/L))        from r_0 at no length to r_L at L, along half a cosine
    R        = { r_e          ℓ ≥ L
               { CosFn(ℓ)     with one pair r_0, r_L for right completions and another for wrong ones

ℓ is the completion's length in tokens, its end token included; L is `max_tokens`. Right completions are to be short. Wrong ones
are paid better the longer they are, as more thought might have found the answer: the paper needs a penalty on repetition beside
that, because a policy can be long without thinking. Here `monitor/repetition` shows it.

The paper's R is the whole reward: right 2 to 1, wrong −10 to 0, exceeded −10. Beside `answer`, which pays the right 1, that is
`right: [1, 0]`, `wrong: [-10, 0]`, `exceeded: -10`, but that a right completion which takes all of L is paid −9: at half of L
the right are paid 1.5 in all and the wrong −5. The defaults keep to the scale of the answer, so that it is not drowned where
rewards are compared as they are: right 1 to 0, wrong −1 to 0, exceeded −1. Worked, with L = 400: at 100, 200 and 300 tokens the
component then pays 0.8536, 0.5 and 0.1464 to right completions, −0.8536, −0.5 and −0.1464 to wrong ones, and −1 at 400 to both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import PositiveInt

from rewards.accuracy import known_accuracy
from rlcore.protocols import Reward
from rlcore.types import Completion, Group, Score, Scored


class Cosine(Reward):
    """`max_tokens`: L, the sampling's `max_new_tokens` or less; `right`, `wrong`: [r_0, r_L]; `exceeded`: r_e, whatever the
    answer. Raises UserError in runs that verify nothing."""

    reads_accuracy = True
    reads_length = True

    def __init__(
        self,
        *,
        max_tokens: PositiveInt,
        right: tuple[float, float] = (1.0, 0.0),
        wrong: tuple[float, float] = (-1.0, 0.0),
        exceeded: float = -1.0,
    ) -> None:
        self.max_tokens = self._limit = max_tokens
        self._right, self._wrong, self._exceeded = right, wrong, exceeded

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group."""
        return [
            self._score(completion, right)
            for group in groups
            for completion, right in zip(group.completions, known_accuracy("cosine", group), strict=True)
        ]

    def _score(self, completion: Completion, right: float) -> Score:
        length = len(completion.token_ids)
        if length >= self._limit:
            return Scored(self._exceeded, f"{length} tokens, not below {self._limit}")
        first, last = self._right if right else self._wrong
        return Scored(last + (first - last) * (1 + math.cos(math.pi * length / self._limit)) / 2, f"{length} tokens")
