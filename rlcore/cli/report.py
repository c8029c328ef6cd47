"""`rlcore report`."""

from __future__ import annotations

from pathlib import Path

from rlcore.cli.output import write_json
from rlcore.report.page import write_report


def run(folder: str, json_file: str) -> None:
    path = write_report(Path(folder))
    print(path)
    write_json({"report": str(path)}, json_file)
