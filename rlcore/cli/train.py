"""`rlcore train`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rlcore.cli.output import check_json, write_json
from rlcore.errors import UserError
from rlcore.recipe.load import load

BEST = "accuracy_before_best_temperature"


def train(arguments: Sequence[str], resume: bool, json_file: str) -> None:
    check_json(json_file)
    loaded = load(arguments)
    job, verb = loaded.recipe.job, loaded.recipe.verb
    if verb != "train":
        raise UserError(f"this recipe is of job: {job}, which trains nothing: rlcore {verb} {' '.join(arguments)}")
    from rlcore import jobs
    from rlcore.run.folder import Interrupted

    try:
        summary = jobs.run(loaded, resume)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print(
            f"stopped at once; go on from the last checkpoint, if there is one: rlcore train {loaded.recipe.folder} --resume",
            file=sys.stderr,
        )
        sys.exit(130)
    folder = loaded.recipe.folder
    if "accuracy_after" in summary:
        before, after = (_interval(summary, name) for name in ("accuracy_before", "accuracy_after"))
        best = f", at its best temperature {_interval(summary, BEST)}" if BEST in summary else ""
        print(f"held-out accuracy {before}{best}; after {summary['steps']} steps {after}", file=sys.stderr)
    print(f"done: {folder}/summary.json, {folder}/report.html", file=sys.stderr)
    write_json(summary, json_file)


def _interval(summary: Mapping[str, float], name: str) -> str:
    return f"{summary[name]:.1%} ({summary[name + '_low']:.1%} to {summary[name + '_high']:.1%})"


def dry_run(arguments: Sequence[str]) -> None:
    """The resolved recipe with the origin of each value, then what can be said without training."""
    loaded = load(arguments)
    from rlcore.preview import preview

    lines = list(preview(loaded.recipe))  # what it refuses is not to be looked for below the recipe
    print(loaded.to_yaml(with_origins=True))
    for line in lines:
        print(line)
