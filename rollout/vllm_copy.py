"""The compressed copy of the policy that drafts in a process of vLLM, and what loads it. See `rollout.drafters.compressed`.

vLLM reloads its policy and its draft model one at a time, and each weight comes by only once: so the draft model's reload is
driven from here, beside the policy's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from compress.codec import Codec


class CompressedCopy:
    """Of a vLLM `worker`; compressed by `codec`, and decoded to `dtype`. `seconds` is what the last reload took."""

    def __init__(self, worker: Any, codec: Codec, dtype: torch.dtype) -> None:
        self.worker, self.codec, self.dtype = worker, codec, dtype
        self.model = worker.get_draft_model()
        self.seconds = 0.0

    def begin(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self.seconds = 0.0
        with self._at_work():
            initialize_layerwise_reload(self.model)

    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Some of the policy's weights, by the names of the plain checkpoint."""
        with self._at_work():
            self.model.load_weights((name, self._compressed(name, tensor)) for name, tensor in tensors)

    def end(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        with self._at_work():
            finalize_layerwise_reload(self.model, self.worker.vllm_config.speculative_config.draft_model_config)

    @torch.no_grad()
    def _compressed(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.codec.names:
            return tensor
        return self.codec.encode(name, tensor.to(self.worker.device)).decode().to(self.dtype)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        from vllm.config import set_current_vllm_config

        since = time.perf_counter()
        with set_current_vllm_config(self.worker.vllm_config):
            yield
        self.seconds += time.perf_counter() - since
