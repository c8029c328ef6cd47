"""Rank 0's end of `rollout.transport`: vLLM's trainer engine for NCCL, which it has send one bucket at a time.

vLLM's engine can drive the inference side too, through a client. Here the pool does that, which knows when a worker died: the
client has nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer import ParamMeta, TrainerWeightTransferEngine, WeightSource, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo


class Broadcaster:
    def __init__(self) -> None:
        self._source = _Source()
        self._engine: TrainerWeightTransferEngine | None = None

    def open(self, address: str, port: int, world_size: int) -> None:
        """Wait at this address for the other `world_size` − 1 processes; those of an earlier group are left behind."""
        if self._engine is not None:
            self._engine.shutdown()
        info = NCCLTrainerInitInfo(address, port, world_size, packed=False, rank=0)
        self._engine = WeightTransferTrainerFactory.trainer_init(info, client=_NothingToDo(), source=self._source)

    def send(self, tensors: Mapping[str, Tensor]) -> None:
        """Returns when everyone has them. They must lie on this process's GPU."""
        assert self._engine is not None
        self._source.tensors = tensors
        self._engine.send_weights()
        self._source.tensors = {}


class _Source(WeightSource):
    """What is sent next."""

    def __init__(self) -> None:
        self.tensors: Mapping[str, Tensor] = {}

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.tensors.items())


class _NothingToDo:
    """vLLM's VLLMWeightSyncClient."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...
