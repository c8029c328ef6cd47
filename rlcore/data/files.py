"""Where data files are found. A benchmark's rows: the source's `path`, else a file in `$RLCORE_DATA_DIR`, else the hub.

Called by the benchmark sources (`gsm8k`, `math500`, `math`) and by `rlcore.data.formats`; the reading itself is
`rlcore.data.rows`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rlcore.data.rows import Row, rows_of_file, rows_of_hub
from rlcore.errors import UserError

DATA_DIR = "RLCORE_DATA_DIR"


def benchmark_rows(
    file: str, *, dataset: str, configs: Sequence[str | None], split: str, path: str | None, limit: int | None
) -> list[Row]:
    """The rows of one split. A place that is named but does not hold the file is an error, never a reason to look further."""
    if path is not None:
        return rows_of_file(Path(path).expanduser(), limit)
    if os.environ.get(DATA_DIR):
        local = Path(os.environ[DATA_DIR]).expanduser() / file
        if not local.is_file():
            raise UserError(f"{local}: there is no such file; put it there, unset {DATA_DIR}, or give the source a `path`")
        return rows_of_file(local, limit)
    remedy = f"set {DATA_DIR} to a folder with {file} in it, or give the source a `path`"
    rows = [row for config in configs for row in rows_of_hub(dataset, config, split, limit, remedy=remedy)]
    return rows[:limit]


def rows_named(path: str, limit: int | None) -> list[Row]:
    """The rows of the file called `path`; a relative one that is not here is meant to be in `$RLCORE_DATA_DIR`, if set."""
    named = Path(path).expanduser()
    if not named.is_file() and os.environ.get(DATA_DIR):
        named = Path(os.environ[DATA_DIR]).expanduser() / named  # an absolute path stays what it is
    return rows_of_file(named, limit)
