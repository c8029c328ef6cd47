"""DAPO's soft overlong punishment (Yu et al. 2025, arXiv 2503.14476, eq. 13).

    r(y) = factor · { 0                                      |y| ≤ L_max − L_cache
                    { ((L_max − L_cache) − |y|) / L_cache    up to L_max
                    { −1                                     beyond

|y| is the completion's length in tokens, its end token included; L_max is `max_tokens`, L_cache is `buffer`. Worked, with the
paper's L_max = 20480, L_cache = 4096, factor 1: |y| = 16384 gives 0, 18432 gives −0.5, 20480 and beyond give −1.

A completion that comes near the token limit learns of it before it is cut there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import PositiveInt

from rlcore.errors import UserError
from rlcore.protocols import Reward
from rlcore.types import Group, Score, Scored


class Overlong(Reward):
    """`max_tokens`: the length from which the whole `factor` is taken off; `buffer`: over how many tokens before it grows.

    Raises UserError for a buffer that is not within (0, max_tokens].
    """

    reads_length = True

    def __init__(self, *, max_tokens: PositiveInt, buffer: PositiveInt, factor: float = 1.0) -> None:
        if buffer > max_tokens:
            raise UserError(f"overlong: buffer must be at most max_tokens ({max_tokens}), not {buffer}")
        self.max_tokens, self._free = max_tokens, max_tokens - buffer
        self._buffer, self._factor = buffer, factor

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        """One score per completion, group after group."""
        return [self._score(len(completion.token_ids)) for group in groups for completion in group.completions]

    def _score(self, length: int) -> Score:
        excess = length - self._free
        if excess <= 0:
            return Scored(0.0)
        return Scored(-self._factor * min(excess / self._buffer, 1.0), f"{length} tokens")
