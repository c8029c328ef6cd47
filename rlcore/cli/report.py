"""`rlcore report`."""

from __future__ import annotations

from pathlib import Path

from rlcore.cli.output import check_json, write_json
from rlcore.report.page import write_report


def run(folder: str, json_file: str) -> None:
    check_json(json_file)
    path = write_report(Path(folder))
    print(path)
    write_json({"report": str(path)}, json_file)
