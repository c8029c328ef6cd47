"""`rlcore train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rlcore.cli.output import write_json
from rlcore.recipe.load import load


def train(arguments: Sequence[str], resume: bool, json_file: str) -> None:
    loaded = load(arguments)
    from rlcore import jobs
    from rlcore.run.folder import Interrupted

    try:
        summary = jobs.run(loaded, resume)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    folder = loaded.recipe.folder
    print(f"done: {folder}/summary.json, {folder}/report.html, {folder}/checkpoints", file=sys.stderr)
    write_json(summary, json_file)


def dry_run(arguments: Sequence[str]) -> None:
    """The resolved recipe with the origin of each value, then what can be said without training."""
    loaded = load(arguments)
    from rlcore.preview import preview

    print(loaded.to_yaml(with_origins=True))
    for line in preview(loaded.recipe):
        print(line)
