"""`rlcore decode`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rlcore.cli.job import done
from rlcore.cli.output import write_json
from rlcore.recipe.schema import ClusterHeads, DecodeBench, Prefill


def bench(arguments: Sequence[str], resume: bool, json_file: str) -> None:
    loaded, summary = done(DecodeBench, arguments, resume, json_file)
    from rlcore.report.bench import PICTURE, read, told

    folder = Path(loaded.recipe.folder)
    measurements = read(folder)
    for line in told(measurements):
        print(line, file=sys.stderr)
    print(f"done: {folder}/{PICTURE}, {folder}/report.html", file=sys.stderr)
    write_json({**summary, "measurements": measurements}, json_file)


def cluster(arguments: Sequence[str], resume: bool, json_file: str) -> None:
    loaded, summary = done(ClusterHeads, arguments, resume, json_file)
    print(
        f"{summary['shared_heads']} of {summary['heads']} heads in {summary['shared_clusters']} clusters that are shared, "
        f"in {summary['cluster_s']:.0f} s",
        file=sys.stderr,
    )
    print(f"done: {loaded.recipe.folder}/clusters.json, {loaded.recipe.folder}/report.html", file=sys.stderr)
    write_json(summary, json_file)


def prefill(arguments: Sequence[str], resume: bool, json_file: str) -> None:
    loaded, summary = done(Prefill, arguments, resume, json_file)
    from rlcore.report.prefill import PICTURE, told

    for line in told(summary):
        print(line, file=sys.stderr)
    folder = Path(loaded.recipe.folder)
    print(f"done: {folder}/{PICTURE}, {folder}/report.html", file=sys.stderr)
    write_json(summary, json_file)
