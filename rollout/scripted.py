"""A fake engine that says what it is told to, for tests of faults and of everything that only reads completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlcore.protocols import Bucket, Engine, Manifest, Tokens
from rlcore.types import Completion, Request
from rollout.admission import refuse_unfit
from rollout.sync import Intake, checksum


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
        self.tokenizer, self.script = tokenizer, script
        self.context, self.capacity = context, 1 << 30
        self._weights = {name: tensor.clone() for name, tensor in (weights or {}).items()}
        self._intake = Intake({name: tuple(tensor.shape) for name, tensor in self._weights.items()})
        self._waiting: list[Request] = []

    @property
    def version(self) -> int:
        return self._intake.version

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def submit(self, requests: Sequence[Request]) -> None:
        self._intake.refuse_torn()
        refuse_unfit(requests, self.context)
        self._waiting.extend(requests)

    def poll(self) -> list[Completion]:
        return [self._speak(self._waiting.pop(0))] if self._waiting else []

    def interrupt(self) -> list[Completion]:
        stopped = [self._speak(request, interrupted=True) for request in self._waiting]
        self._waiting.clear()
        return stopped

    def logprobs(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[list[float]]:
        self._intake.refuse_torn()
        return [[0.0] * len(token_ids) for _, token_ids in sequences]

    def begin_sync(self, manifest: Manifest) -> None:
        self._intake.begin(manifest)

    def receive(self, bucket: Bucket) -> None:
        self._intake.check(bucket)
        arrived = self._intake.decode(bucket, torch.float32, torch.device("cpu"))
        self._weights |= {name: tensor.clone() for name, tensor in arrived.items() if name in self._weights}

    def end_sync(self) -> None:
        self._intake.end()

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
            self.version,
            "interrupted" if interrupted else "stop" if end == len(tokens) else "length",
            self.tokenizer.decode([*request.prefix.token_ids, *said], skip_special_tokens=True),
        )
