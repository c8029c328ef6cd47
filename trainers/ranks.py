"""Processes that compute in lockstep: Ray actors joined by torch.distributed. `trainers.group` says what they hold."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from rlcore.protocols import LearnerLost
from rlcore.remote import START_S, answers, kill


class Ranks:
    """`count` processes with `gpus` GPUs each, in which `make(rank, count)` made what `call` calls; messages call them `name`.
    All make and answer every call together; a call raises LearnerLost, and ends them all, where one of them is lost: it died,
    or said nothing for `deadline_s` seconds."""

    def __init__(
        self,
        make: Callable[[int, int], Any],
        *,
        name: str,
        count: int,
        gpus: float,
        environment: Mapping[str, str],
        deadline_s: float,
    ) -> None:
        import ray

        self.name, self.deadline_s = name, deadline_s
        self._calling = threading.Lock()  # all ranks get the calls of several threads in one order
        options = dict(num_cpus=0, num_gpus=gpus, runtime_env={"env_vars": dict(environment)})
        self._actors: list[Any] = [ray.remote(Rank).options(**options).remote() for _ in range(count)]
        [address] = self._answered({0: self._actors[0].listen.remote()}, START_S)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        self._joining = {
            rank: actor.join.remote(make, rank, count, address, backend, deadline_s) for rank, actor in enumerate(self._actors)
        }

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """What each rank's object answers, rank after rank. Raises what one of them raised."""
        if self._joining:
            self._answered(self._joining, START_S)
            self._joining = {}
        with self._calling:
            calls = {rank: actor.call.remote(method, *arguments) for rank, actor in enumerate(self._actors)}
        return self._answered(calls, self.deadline_s)

    def close(self) -> None:
        kill(self._actors)
        self._actors = []

    def _answered(self, calls: dict[int, Any], deadline_s: float) -> list[Any]:
        if not self._actors:
            raise LearnerLost(f"{self.name}: ended before")
        found = answers(calls, deadline_s, together=True)
        if found.lost:  # what others raise then is that they lost the connection
            self.close()
            raise LearnerLost("; ".join(f"{self.name} {rank} {why}" for rank, why in found.lost.items()))
        for error in found.raised.values():
            raise error
        return [found.got[rank] for rank in calls]


class Rank:
    """One of the processes."""

    _listening: socket.socket | None = None

    def listen(self) -> tuple[str, int]:
        """Where the ranks meet: an address of this machine that the cluster uses, and none but that."""
        import ray

        host = ray.util.get_node_ip_address()
        self._listening = socket.create_server((host, 0))
        return host, self._listening.getsockname()[1]

    def join(
        self,
        make: Callable[[int, int], Any],
        rank: int,
        count: int,
        address: tuple[str, int],
        backend: str,
        deadline_s: float,
    ) -> None:
        import torch.distributed as dist

        host, port = address
        if host.startswith("127."):  # else gloo and NCCL would ask the machine's name for an address
            os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": host,
            "MASTER_PORT": str(port),
        }
        own = {} if self._listening is None else dict(is_master=True, master_listen_fd=self._listening.detach())
        store = dist.TCPStore(host, port, count, wait_for_workers=False, **own)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timedelta(seconds=deadline_s))
        self._held = make(rank, count)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._held, method)(*arguments)
