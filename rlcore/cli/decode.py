"""`rlcore decode`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rlcore.cli.job import done
from rlcore.cli.output import write_json
from rlcore.recipe.schema import DecodeBench


def bench(arguments: Sequence[str], resume: bool, json_file: str) -> None:
    loaded, summary = done(DecodeBench, arguments, resume, json_file)
    from rlcore.report.bench import PICTURE, read, told

    folder = Path(loaded.recipe.folder)
    measurements = read(folder)
    for line in told(measurements):
        print(line, file=sys.stderr)
    print(f"done: {folder}/{PICTURE}, {folder}/report.html", file=sys.stderr)
    write_json({**summary, "measurements": measurements}, json_file)
