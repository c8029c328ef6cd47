"""A fake engine that says what it is told to, for tests of faults and of everything that only reads completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlcore.protocols import Engine, Tokens, WeightUpdate
from rlcore.types import Completion, Request
from rollout.admission import refuse_unfit
from rollout.sync import checksum, stage


class Scripted(Engine):
    """`script(request)` gives the text of each completion; its tokens are the tokenizer's, each with log-prob 0. A forced
    prefix stands for as many of them. Half of a completion is there when it is interrupted. `weights` are received and
    checked as a model's would be, and used for nothing."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        script: Callable[[Request], str],
        weights: Mapping[str, Tensor] | None = None,
        context: int = 1 << 30,
    ) -> None:
        self.tokenizer, self.script, self.context = tokenizer, script, context
        self._version = 0
        self._weights = dict(weights or {})
        self._waiting: list[Request] = []

    @property
    def version(self) -> int:
        return self._version

    def submit(self, requests: Sequence[Request]) -> None:
        refuse_unfit(requests, self.context)
        self._waiting.extend(requests)

    def poll(self) -> list[Completion]:
        return [self._speak(self._waiting.pop(0))] if self._waiting else []

    def interrupt(self) -> list[Completion]:
        stopped = [self._speak(request, interrupted=True) for request in self._waiting]
        self._waiting.clear()
        return stopped

    def logprobs(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[list[float]]:
        return [[0.0] * len(token_ids) for _, token_ids in sequences]

    def sync(self, update: WeightUpdate) -> None:
        arrived = stage(update, self._weights, self._version)
        if update.kind == "full":
            self._weights = arrived
        self._version = update.version

    def checksums(self) -> dict[str, int]:
        return {name: checksum(tensor) for name, tensor in self._weights.items()}

    def close(self) -> None:
        self._waiting.clear()

    @staticmethod
    def cache_bytes(sequences: int, sequence_bytes: int, **_: Any) -> int:
        return 0

    def _speak(self, request: Request, interrupted: bool = False) -> Completion:
        tokens = self.tokenizer(self.script(request), add_special_tokens=False).input_ids
        end, begun = min(len(tokens), request.sampling.max_new_tokens), len(request.prefix.token_ids)
        if interrupted:
            end = (begun + end) // 2
        said = tokens[begun:end]
        return request.completed(
            said,
            (0.0,) * len(said),
            self._version,
            "interrupted" if interrupted else "stop" if end == len(tokens) else "length",
            self.tokenizer.decode([*request.prefix.token_ids, *said], skip_special_tokens=True),
        )
