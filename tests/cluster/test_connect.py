"""Clusters of real Ray, each driven by a process of its own, as a user's run is (driver.py)."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from rlcore.cluster import connect
from rlcore.cluster.connect import connected
from rlcore.errors import UserError

pytestmark = pytest.mark.xdist_group("ray")
GONE_S = 30.0
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
REPOSITORY = Path(__file__).parents[2]


class Driver:
    """A process in a cluster."""

    def __init__(self, *arguments: str, folder: Path, environment: dict[str, str]) -> None:
        command = [sys.executable, str(Path(__file__).with_name("driver.py")), *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, text=True, start_new_session=True
        )
        self.about = self.hear()

    def hear(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def ask(self, method: str) -> Any:
        """What each actor answers."""
        assert self.process.stdin
        print(method, file=self.process.stdin, flush=True)
        return self.hear()

    def tree(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def end(self) -> int:
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(timeout=GONE_S)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """For temporary files, so that no other run's are met; short, as the paths of sockets must be."""
    folder = Path(tempfile.mkdtemp(prefix="", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    return {**CLEAN, "TMPDIR": str(home), "HOME": str(home), "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture(scope="module")
def start(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Driver]]:
    """A driver in a folder that has my_rewards.py; killed at the end."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "my_rewards.py").write_text("ANSWER = 42\n")
    started: list[Driver] = []

    def run(*arguments: str, **more: str) -> Driver:
        started.append(Driver(*arguments, folder=folder, environment=environment | more))
        return started[-1]

    yield run
    for driver in started:
        driver.process.kill()
        driver.process.wait()


@pytest.fixture(scope="module")
def local(start: Callable[..., Driver]) -> Driver:
    """A local cluster; what RAY_ADDRESS does not name."""
    driver = start("auto", "early", RAY_AUTH_MODE="disabled")
    driver.ask("about")  # its actors are there
    return driver


@pytest.fixture(scope="module")
def head(home: Path, environment: dict[str, str]) -> Iterator[SimpleNamespace]:
    """A cluster that `ray start` has started, on loopback, and what it takes to join it."""
    entrance = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of this cluster" * 4, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    folder = home / "head"
    options = "--head --block --port=0 --num-cpus=1 --include-dashboard=false --disable-usage-stats --node-ip-address=127.0.0.1"
    process = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "start", *options.split(), f"--temp-dir={folder}"],
        env=environment | entrance | {"AUTOSCALER_METRIC_PORT": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    tree = [psutil.Process(process.pid)]
    try:
        until((folder / "ray_current_cluster").exists)
        yield SimpleNamespace(address=(folder / "ray_current_cluster").read_text(), entrance=entrance, process=tree[0])
    finally:
        tree += tree[0].children(recursive=True)
        for p in tree:
            p.kill()
        process.wait()


def until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.1)


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs([p for p in processes if p.is_running()], timeout=GONE_S)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def listening(process: psutil.Process) -> list[tuple[str, int]]:
    """Where it can be reached: TCP sockets that listen, and UDP sockets without a peer."""
    sockets = process.net_connections(kind="inet")
    open_ = [s for s in sockets if s.status == psutil.CONN_LISTEN or (s.type == socket.SOCK_DGRAM and not s.raddr)]
    return [(s.laddr.ip, s.laddr.port) for s in open_]


def folders(home: Path) -> set[str]:
    """Of the clusters."""
    return {path.name for path in (home / f"rlcore-{os.getuid()}").iterdir()}


def refusal(address: str, environment: dict[str, str], before: str = "") -> str:
    """What the user is told who wants to connect to `address`."""
    code = (
        f"import sys; {before}\n"
        "from rlcore.cluster.connect import connected\nfrom rlcore.errors import UserError\n"
        f"try:\n    with connected({address!r}): print('let in')\nexcept UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, timeout=90)
    return done.stdout.strip()


# -- a local cluster -------------------------------------------------------------------------------------------------------


def test_a_local_cluster_listens_on_loopback_alone(local: Driver) -> None:
    """Every process of it, its actors included, and although Ray was imported before."""
    assert local.about["line"].startswith("started a Ray cluster of this machine; what its processes say is in ")
    names = {p.name() for p in local.tree()}
    assert {"gcs_server", "raylet", "ray::RuntimeEnvAgent"} <= names
    found = [(p.name(), *where) for p in local.tree() for where in listening(p)]
    assert len(found) > 5
    addresses = [(name, ipaddress.ip_address(host)) for name, host, _ in found]
    assert [(name, a) for name, a in addresses if not (getattr(a, "ipv4_mapped", None) or a).is_loopback] == []


@pytest.mark.parametrize("key", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of another cluster" * 4}])
def test_a_local_cluster_lets_nobody_in_without_its_token(local: Driver, environment: dict[str, str], key: dict) -> None:
    """Although the user's environment turned tokens off."""
    told = refusal(local.about["gcs"], environment | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} | key)
    assert "InvalidAuthToken" in told
    assert "RAY_AUTH_TOKEN" in told
    assert "\n" not in told


def test_the_agent_that_prepares_environments_asks_for_the_token_too(local: Driver) -> None:
    """It would install packages for anybody."""
    [agent] = [p for p in local.tree() if p.name() == "ray::RuntimeEnvAgent"]
    [(_, port)] = listening(agent)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/get_or_create_runtime_env", data=b"", timeout=10)


def test_its_files_are_the_users_alone_and_its_token_is_in_none(local: Driver, home: Path) -> None:
    assert (home / f"rlcore-{os.getuid()}").stat().st_mode & 0o777 == 0o700
    logs = Path(local.about["line"].split()[-1])
    assert logs.is_relative_to(home)
    assert list(logs.glob("worker-*.out"))
    assert not (home / ".ray").exists()


def test_an_actor_imports_a_file_of_the_drivers_folder(local: Driver) -> None:
    assert [actor["answer"] for actor in local.ask("about")] == [42, 42]


def test_control_c_reaches_no_actor(local: Driver) -> None:
    """The run finishes its step, for which it needs them."""
    before = local.ask("about")
    os.killpg(local.process.pid, signal.SIGINT)
    assert local.ask("about") == before


def test_clusters_side_by_side_do_not_meet_and_a_killed_one_leaves_nothing(
    local: Driver, start: Callable[..., Driver], home: Path
) -> None:
    """Its actors hang in C code and have children."""
    folders_before, memory_before = folders(home), set(Path("/dev/shm").iterdir())
    other = start("local", RAY_ADDRESS=local.about["gcs"])
    assert other.about["gcs"] != local.about["gcs"]
    assert not {p.pid for p in local.tree()} & {p.pid for p in other.tree()}
    other.ask("about")
    other.ask("hang")
    until(lambda: sum(p.name() == "sleep" for p in other.tree()) == 2)
    tree = other.tree()
    os.kill(other.process.pid, signal.SIGKILL)
    other.process.wait()
    assert_gone(tree)
    until(lambda: folders(home) == folders_before)
    assert set(Path("/dev/shm").iterdir()) <= memory_before
    assert local.ask("about")


def test_the_end_leaves_no_process_and_no_file(local: Driver, home: Path) -> None:
    """The last of this cluster's tests. A call that comes too late does not start another one."""
    tree = local.tree()
    assert local.end() == 0
    assert local.hear() == "a call after the end is refused"
    assert_gone(tree)
    assert folders(home) == set()


# -- a cluster that is there -----------------------------------------------------------------------------------------------


def test_the_cluster_that_ray_address_names_is_joined_and_left_as_it_was(head: SimpleNamespace, start: Callable) -> None:
    before = {p.pid for p in head.process.children(recursive=True) if not p.name().startswith("ray::IDLE")}
    for end in (lambda driver: driver.process.kill(), Driver.end):
        driver = start("auto", RAY_ADDRESS=head.address, **head.entrance)
        assert driver.about["line"].startswith(f"joined the Ray cluster at {head.address} (1 node); ")
        assert driver.about["gcs"] == head.address
        actors = [psutil.Process(actor["pid"]) for actor in driver.ask("about")]
        end(driver)
        assert_gone(actors)
    assert before <= {p.pid for p in head.process.children(recursive=True)}


# -- what can be wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["ray://host:10001", "http://host:8265", "host", ":6379", "host:", "host:99999", "host:²"])
def test_an_address_of_another_kind_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    for asked, origin in ((address, "the recipe's cluster.address"), ("auto", "RAY_ADDRESS")):
        with pytest.raises(UserError, match=f"^{origin} {address!r} is none of auto, local, HOST:PORT"), connected(asked):
            pass


def test_an_address_where_nobody_listens_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
    with (
        pytest.raises(
            UserError, match=rf"no Ray cluster answers at {host}:{port} \(the recipe's cluster.address\): Connection refused"
        ),
        connected(f"{host}:{port}"),
    ):
        pass


def test_an_address_that_is_no_clusters_is_refused(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        quick = {"RAY_gcs_rpc_server_connect_timeout_s": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        told = refusal(f"{host}:{port}", environment | quick)
    assert told.startswith(f"cannot join the Ray cluster at {host}:{port}: ")
    assert "Timed out" in told


def test_without_ray_the_user_is_told_what_to_install(environment: dict[str, str]) -> None:
    assert "pip install 'rlcore[cpu]'" in refusal("local", environment, before="sys.modules['ray'] = None")


def test_shared_memory_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "disk_usage", lambda path: SimpleNamespace(free=64 << 20))
    with pytest.raises(UserError, match=r"has 64 MiB free, and Ray needs 256: .* --shm-size"), connected("local"):
        pass


# -- the folders -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


def test_after_an_error_the_logs_stay_until_the_next_start_which_leaves_those_of_the_living(elsewhere: Path) -> None:
    with connect._folder() as living:
        with pytest.raises(RuntimeError), connect._folder() as failed:
            raise RuntimeError
        assert failed.exists()
        with connect._folder():
            assert not failed.exists()
            assert living.exists()
    assert folders(elsewhere) == set()


def test_a_folder_that_is_open_to_others_or_theirs_is_refused(elsewhere: Path) -> None:
    home = elsewhere / f"rlcore-{os.getuid()}"
    home.mkdir(mode=0o755)
    with pytest.raises(UserError, match="open to others"), connect._folder():
        pass
    home.rename(elsewhere / "private")
    (elsewhere / "private").chmod(0o700)
    home.symlink_to(elsewhere / "private")
    with pytest.raises(UserError, match="belongs to somebody else"), connect._folder():
        pass


def test_the_paths_of_sockets_stay_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    session = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
    with connect._folder() as folder:
        assert len(os.fsencode(folder / session)) < 103
