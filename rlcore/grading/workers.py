"""Processes that grade what may hang (`graders.at_length`), each answer under a time and a memory limit. Serves `pool`.

They come from a fork server that is the warm spare of them all: it has imported and warmed up (`warm`) what they need, so that
a killed one's replacement answers within 20 ms. They do not outlive their parent, whatever kills it: an idle worker sees the
pipe close, a busy one is ended by its own alarm clock.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType

from pebble import ProcessFuture, ProcessPool

from rlcore.grading.graders import LIBRARIES, at_length
from rlcore.types import Problem, Verdict

ALARM_MARGIN_S = 1.0  # the alarm clock is for when nobody is left to enforce the deadline


class Workers:
    """`count` processes for each grader in use, started on demand; any thread may call.

    `deadline_s` and `memory_mb` (beyond what the imports take) bound one answer. With `single_use`, every answer gets a process
    of its own.
    """

    def __init__(self, count: int, deadline_s: float, memory_mb: int, *, single_use: bool = False) -> None:
        self.count = count
        self.deadline_s = deadline_s
        self.memory_mb = memory_mb
        self.single_use = single_use
        self._pools: dict[str, ProcessPool] = {}
        self._lock = threading.Lock()

    def run(self, tasks: Sequence[tuple[str, Problem]]) -> list[Verdict | BaseException]:
        """For each (answer, problem) the verdict, or what came instead: TimeoutError, MemoryError, ProcessExpired (the process
        died), BrokenProcessPool (all of them did), or whatever the grader raised."""
        pools = [self._pool(problem.grader) for _, problem in tasks]
        try:
            futures = [
                pool.schedule(_grade, args=[*task, self.deadline_s + ALARM_MARGIN_S], timeout=self.deadline_s)
                for pool, task in zip(pools, tasks, strict=True)
            ]
        except RuntimeError as error:  # pebble's word for a pool that broke a moment ago
            return [BrokenProcessPool(str(error))] * len(tasks)
        return [_outcome(pool, future) for pool, future in zip(pools, futures, strict=True)]

    def close(self) -> None:
        with self._lock:
            for pool in self._pools.values():
                _end(pool)
            self._pools.clear()

    def _pool(self, grader: str) -> ProcessPool:
        """The running pool of a grader; a broken one is replaced."""
        with self._lock:
            pool = self._pools.get(grader)
            if pool is not None and not pool.active:
                _end(pool)
                pool = None
            if pool is None:
                pool = self._pools[grader] = self._start(LIBRARIES[grader])
            return pool

    def _start(self, library: str) -> ProcessPool:
        context = multiprocessing.get_context("forkserver")
        # Heeded when the fork server starts, once, so other graders' libraries too; gym's, of seconds, only where it is in use.
        libraries = [name for name in LIBRARIES.values() if name in (library, LIBRARIES["math"], *sys.modules)]
        context.set_forkserver_preload([__name__, *libraries, *_what_main_imports()])
        return ProcessPool(
            max_workers=self.count,
            max_tasks=int(self.single_use),
            initializer=_prepare,
            initargs=[library, self.memory_mb],
            context=context,
        )


def _what_main_imports() -> list[str]:
    """Every new process runs the main module's imports (to preload `__main__` itself does nothing: CPython gh-126631)."""
    main = vars(sys.modules["__main__"]).values()
    found = {value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) for value in main}
    return sorted(name for name in found if name in sys.modules and name != "__main__")


def _outcome(pool: ProcessPool, future: ProcessFuture[Verdict]) -> Verdict | BaseException:
    while pool.active and not future.done():  # a pool that breaks forgets the tasks it has not begun
        wait([future], timeout=1.0)
    if not future.done():
        return BrokenProcessPool("the worker processes died")
    return future.exception() or future.result()


def _end(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def _prepare(library: str, memory_mb: int) -> None:
    """Make this process a worker."""
    with contextlib.suppress(ImportError), warnings.catch_warnings(action="ignore"):
        importlib.import_module(library)  # where the package is missing, the grader says so
    # At once, and not when the interpreter next gets a turn: a worker may be inside one C call for hours.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    statm = Path("/proc/self/statm")
    if statm.exists():  # elsewhere the kernel does not enforce the limit either
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + memory_mb * 2**20
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _grade(answer: str, problem: Problem, alarm_s: float) -> Verdict:
    signal.setitimer(signal.ITIMER_REAL, alarm_s)
    try:
        return at_length(answer, problem)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
