"""How rlcore reaches Ray: it joins a cluster that is there, or starts one of this machine that nobody else can reach.

A local cluster listens on 127.0.0.1 alone, asks for a token that only this process and those it starts know, and keeps its
files in a folder of its own below the user's: two users, or two runs of one, never meet. Its processes end with this one,
however that ends; what is left of its files is removed when it ends well, and by the next one otherwise.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rlcore.errors import UserError

# Read by Ray when it is imported, and by the processes that it starts.
LOCAL_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as on those: the node's address is 127.0.0.1, and servers bind to nothing else
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # how long Ray's agents outlive a driver that was killed
    "AUTOSCALER_METRIC_PORT": "0",  # any free port, where 44217 would be the same one for all
}
QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # Ray's notice about actors without GPUs
STORE_BYTES = 2**30  # the object store holds a few buckets of weights and the batch of a step
LEAST_STORE_BYTES = 128 * 2**20
REACH_S = 10.0


@contextmanager
def connected(address: str) -> Iterator[str]:
    """Be the driver in a Ray cluster; yields a line that says in which.

    `address` is "auto" (the cluster that RAY_ADDRESS names, else a local one), "local" or HOST:PORT. Raises UserError where Ray
    is not installed, the address does not answer, or shared memory is too small.
    """
    found = os.environ.get("RAY_ADDRESS", "local") if address == "auto" else address
    with _local() if found == "local" else _joined(found) as description:
        yield description


@contextmanager
def _joined(address: str) -> Iterator[str]:
    _refuse_unreachable(address)
    ray = _import()
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="rlcore")
    except (ConnectionError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"cannot join the Ray cluster at {address}: {first}; is RAY_AUTH_TOKEN that of the cluster?") from error
    try:
        nodes = len(ray.nodes())
        yield f"joined the Ray cluster at {address}: {nodes} {'node' if nodes == 1 else 'nodes'}"
    finally:
        ray.shutdown()


@contextmanager
def _local() -> Iterator[str]:
    if "ray" in sys.modules and not LOCAL_ENVIRONMENT.items() <= os.environ.items():
        raise UserError("ray was imported before rlcore could tell it to listen on this machine alone: import it later")
    os.environ |= LOCAL_ENVIRONMENT | QUIET
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # once in a process: Ray reads it when it is imported
    ray = _import()
    with _folder() as folder:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_store_bytes(),
            log_to_driver=False,
            logging_level="ERROR",
            namespace="rlcore",
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
        )
        try:
            yield f"started a Ray cluster of this machine; what its processes say is in {folder}/session_latest/logs"
        finally:
            ray.shutdown()


def _import():  # type: ignore[no-untyped-def]  # the module
    try:
        import ray
    except ImportError as error:
        raise UserError("`cluster` needs the package ray: pip install 'rlcore[cpu]' or 'rlcore[gpu]'") from error
    return ray


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder of this process, short enough for the paths of sockets (107 bytes); removes those of processes that are gone."""
    home = Path(tempfile.gettempdir()) / f"rlcore-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid() or home.stat().st_mode & 0o077:
        raise UserError(f"{home} belongs to somebody else or is open to others: remove it, or set TMPDIR to a folder of yours")
    for lock_file in home.glob("*.lock"):
        lock = FileLock(lock_file, timeout=0)
        try:
            with lock:
                shutil.rmtree(lock_file.with_suffix(""), ignore_errors=True)
                lock_file.unlink()
        except Timeout:  # its process lives
            continue
    folder = home / secrets.token_hex(3)
    with FileLock(folder.with_suffix(".lock")):
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_suffix(".lock").unlink()


def _store_bytes() -> int:
    """Half of what is free in shared memory, and no more than is of use."""
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.exists() else 2 * STORE_BYTES
    if free < 2 * LEAST_STORE_BYTES:
        need = 2 * LEAST_STORE_BYTES >> 20
        raise UserError(f"/dev/shm has {free >> 20} MiB free, and Ray needs {need}: in a container, give it --shm-size=2g")
    return min(STORE_BYTES, free // 2)


def _refuse_unreachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"cluster.address {address!r} is none of auto, local, HOST:PORT (the driver runs inside the cluster)")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise UserError(f"no Ray cluster answers at {address}: {error.strerror or error}; see `ray status` there") from error
