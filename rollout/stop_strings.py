"""Where a completion ends by what it says."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlcore.protocols import Tokens


def ends_with(stop: Sequence[str], tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether one of the stop strings, of which there is at least one, ends with the last of `tokens`, if none did before."""
    tail = tokens[-(max(map(len, stop)) + 4) :]  # a token may be part of a letter
    return any(string in tokenizer.decode(tail) for string in stop)
