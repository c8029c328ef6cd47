"""A fake engine that says what it is told to, for tests of faults and of everything that only reads completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from rlcore.protocols import Progress, Tokens, WeightUpdate, no_progress
from rlcore.types import Completion, FinishReason, Request


class Scripted:
    """`script(request)` gives the text of each completion; its tokens are the tokenizer's, each with log-prob 0."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, script: Callable[[Request], str]) -> None:
        self.tokenizer, self.script = tokenizer, script
        self.version = 0
        self._waiting: list[Request] = []
        self._checksums: dict[str, int] = {}

    def submit(self, requests: Sequence[Request]) -> None:
        self._waiting.extend(requests)

    def poll(self) -> list[Completion]:
        return [self._speak(self._waiting.pop(0))] if self._waiting else []

    def interrupt(self) -> list[Completion]:
        self._waiting.clear()
        return []

    def generate(self, requests: Sequence[Request], progress: Progress = no_progress) -> list[Completion]:
        return [self._speak(request) for request in requests]

    def logprobs(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[list[float]]:
        return [[0.0] * len(token_ids) for _, token_ids in sequences]

    def sync(self, update: WeightUpdate) -> None:
        self.version, self._checksums = update.version, dict(update.checksums)

    def checksums(self) -> dict[str, int]:
        return self._checksums

    def close(self) -> None:
        pass

    def _speak(self, request: Request) -> Completion:
        text = self.script(request)
        tokens = tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
        limit = request.sampling.max_new_tokens
        kept = tokens[:limit]
        finish_reason: FinishReason = "stop" if kept == tokens else "length"
        return request.completed(
            kept, (0.0,) * len(kept), self.version, finish_reason, text if kept == tokens else self.tokenizer.decode(kept)
        )
