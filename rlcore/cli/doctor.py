"""`rlcore doctor`."""

from __future__ import annotations

import sys
from dataclasses import asdict

from rlcore.cli.output import check_json, write_json
from rlcore.cluster.doctor import examine
from rlcore.run.console import TERMINAL

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def run(json_file: str) -> None:
    """A line per check as it finishes. Ends the process with status 1 where one failed."""
    check_json(json_file)
    checks = []
    for name, found in examine(TERMINAL.status):
        advice = f": {found.advice}" if found.advice else ""
        TERMINAL.print(f"{found.status:<8} {name:<16} {found.what}{advice}", style=STYLES[found.status], markup=False)
        checks.append({"name": name, **asdict(found)})
    failed = [check["name"] for check in checks if check["status"] == "failed"]
    write_json({"ok": not failed, "checks": checks}, json_file)
    if failed:
        sys.exit(1)
