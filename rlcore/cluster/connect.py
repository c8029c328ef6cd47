"""How rlcore reaches Ray: it joins a cluster that is there, or starts one of this machine that nobody else can reach.

A local cluster listens on 127.0.0.1 alone, asks for a token that only this process and those it starts know, and keeps its
files in a folder of its own below the user's: two users, or two runs of one, never meet. Its processes and files go when this
process does, however that ends (`rlcore.cluster.keeper`); after an error the logs stay until the next one starts.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import Any

from filelock import FileLock, Timeout

from rlcore.cluster import keeper
from rlcore.errors import UserError

# Ray reads these when it is imported, and the processes that it starts inherit them.
ALWAYS = {
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call after the end is an error, where it would start a second cluster, open to others
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's notice about actors without GPUs
}
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as on those: the node's address is 127.0.0.1, and servers bind to nothing else
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_worker_niceness": "0",  # actors would give way to everything else on the machine
    "RAY_prestart_worker_first_driver": "0",  # a Python process per core, none of which an actor with an environment can use
    "AUTOSCALER_METRIC_PORT": "0",  # any free port, where 44217 would be the same one for all
    "DASHBOARD_METRIC_PORT": "0",  # likewise 44227
}
JOINED = {  # how long Ray tries an address that is no cluster's, or a token that is another cluster's
    "RAY_gcs_server_port_wait_time_s": "1",  # one attempt
    "RAY_py_gcs_connect_timeout_s": "5",
}
LOOPBACK = "127.0.0.1"
STORE_BYTES = 2**30  # the object store holds a few buckets of weights and the batch of a step
LEAST_STORE_BYTES = 128 * 2**20
REACH_S = 10.0
LONGEST_TMPDIR = 14  # bytes: the paths of Ray's sockets are 89 longer, and some systems take no more than 103


@contextmanager
def connected(address: str) -> Iterator[str]:
    """Be the driver in a Ray cluster; yields a line that says in which, and where the output of its processes is.

    `address` is "auto" (the cluster that RAY_ADDRESS names, else a local one), "local" or HOST:PORT. Raises UserError where Ray
    is not installed, the address does not answer, or shared memory is too small.
    """
    named = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if named in ("", "local"):
        with _local() as description:
            yield description
        return
    _refuse_unreachable(named, "RAY_ADDRESS" if address == "auto" else "the recipe's cluster.address")
    with _joined(named) as description:
        yield description


@contextmanager
def _joined(address: str) -> Iterator[str]:
    ray = _import(JOINED)
    try:
        context = ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        *_, reason = str(error.__cause__ or error).strip().splitlines()
        raise UserError(
            f"cannot join the Ray cluster at {address}: {reason[:160]}; it takes the port of its GCS, a driver on one of its "
            "nodes, and its token in RAY_AUTH_TOKEN with RAY_AUTH_MODE=token"
        ) from error
    try:
        nodes = len(ray.nodes())
        yield f"joined the Ray cluster at {address} ({nodes} node{'s' * (nodes > 1)}); {_where_logs_are(context)} of each node"
    finally:
        ray.shutdown()


@contextmanager
def _local() -> Iterator[str]:
    store_bytes = _store_bytes()
    ray = _import(LOCAL)
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # what the first of LOCAL says, should Ray have been imported before
    os.environ.pop("RAY_AUTH_MODE", None)  # for a cluster that it starts, Ray then sets it to `token`; likewise
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray reads it once in a process
    with _folder() as folder:
        context = ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=store_bytes,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address=LOOPBACK,
            _temp_dir=str(folder),
        )
        try:
            if ray.util.get_node_ip_address() != LOOPBACK or os.environ.get("RAY_AUTH_MODE") != "token":
                raise UserError(f"Ray {ray.__version__} would open a local cluster to others: pip install 'ray>=2.60'")
            yield f"started a Ray cluster of this machine; {_where_logs_are(context)}"
        finally:
            ray.shutdown(wait_for_processes=True)


def _import(environment: dict[str, str]) -> Any:
    os.environ |= ALWAYS | environment
    try:
        import ray
        from ray._private import auto_init_hook
    except ImportError as error:
        raise UserError("`cluster` needs the package ray: pip install 'rlcore[cpu]' or 'rlcore[gpu]'") from error
    auto_init_hook.enable_auto_connect = False  # should Ray have been imported before
    # What Ray says of dead actors goes to standard output, where --json may write. Whoever calls them tells of it.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    return ray


def _where_logs_are(context: Any) -> str:
    return f"what its processes say is in {context.address_info['session_dir']}/logs"


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for a cluster, with a keeper. Removes those that processes left which are gone."""
    tmpdir = tempfile.gettempdir()
    home = Path(tmpdir if len(tmpdir) <= LONGEST_TMPDIR else "/tmp") / f"rlcore-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.lstat().st_uid != os.getuid() or home.lstat().st_mode & 0o077:
        raise UserError(f"{home} belongs to somebody else or is open to others: remove it, or set TMPDIR to a folder of yours")
    for lock_file in home.glob("*.lock"):
        try:
            with FileLock(lock_file, timeout=0):
                keeper.remove(lock_file.with_suffix(""))
        except Timeout:  # its process lives
            continue
    folder = home / secrets.token_hex(3)
    with FileLock(folder.with_suffix(".lock")):
        folder.mkdir()
        keeping = subprocess.Popen(
            [sys.executable, "-P", keeper.__file__, str(folder), str(os.getpid())], start_new_session=True
        )
        wanted = False
        try:
            yield folder
        except Exception:
            wanted = True
            raise
        finally:
            keeping.kill()
            keeping.wait()
            keeper.end_writers(folder)
            if not wanted:
                keeper.remove(folder)


def _store_bytes() -> int:
    """Half of what is free in shared memory, and no more than is of use."""
    shared = Path("/dev/shm")
    free = disk_usage(shared).free if shared.exists() else 2 * STORE_BYTES
    if free < 2 * LEAST_STORE_BYTES:
        need = 2 * LEAST_STORE_BYTES >> 20
        raise UserError(f"/dev/shm has {free >> 20} MiB free, and Ray needs {need}: in a container, give it --shm-size=2g")
    return min(STORE_BYTES, free // 2)


def _refuse_unreachable(address: str, origin: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        raise UserError(f"{origin} {address!r} is none of auto, local, HOST:PORT (the driver runs on one of its nodes)")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"no Ray cluster answers at {address} ({origin}): {reason}; see `ray status` there") from error
