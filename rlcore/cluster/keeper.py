"""`python keeper.py FOLDER DRIVER`: the process that clears up after the driver of a local cluster (DRIVER is its process id).
`rlcore.cluster.connect` starts it in a session of its own, so that it outlives whatever kills the driver.

Of what a killed driver has started, actors end by themselves, and end their children; Ray's agents would live on for a minute,
and so may whatever hangs. It is told from other processes by its output, which goes into files in the cluster's folder.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

LOOK_S = 0.5
GRACE_S = 5.0  # for what ends by itself
TRIES = 10  # a second each: what sits in a system call dies when it comes back


def end_writers(folder: Path) -> None:
    """Kill the other processes that have a file in `folder` open for writing, and wait until they are gone."""
    folder = folder.resolve()
    for _ in range(TRIES):
        left = [p for p in psutil.process_iter() if p.pid != os.getpid() and _writes_into(folder, p)]
        if not left:
            return
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)


def _writes_into(folder: Path, process: psutil.Process) -> bool:
    try:
        files = process.open_files()
    except psutil.Error:  # gone, or somebody else's
        return False
    return any(Path(file.path).is_relative_to(folder) and getattr(file, "mode", "w") != "r" for file in files)


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lock").unlink(missing_ok=True)


def main() -> None:
    folder, driver = Path(sys.argv[1]), int(sys.argv[2])
    while os.getppid() == driver:
        time.sleep(LOOK_S)
    time.sleep(GRACE_S)
    end_writers(folder)
    remove(folder)


if __name__ == "__main__":
    main()
