"""Verbs that do a recipe's job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlcore.cli.output import check_json
from rlcore.errors import UserError
from rlcore.recipe.load import Loaded, load
from rlcore.recipe.schema import Job


def done(job: type[Job], arguments: Sequence[str], resume: bool, json_file: str) -> tuple[Loaded, dict[str, Any]]:
    """The recipe and the summary of its run, which is done where it is not. Raises UserError for a recipe of another job."""
    check_json(json_file)
    loaded = load(arguments)
    if not isinstance(loaded.recipe, job):
        raise UserError(f"this recipe is of job: {loaded.recipe.job}: rlcore {loaded.recipe.verb} {' '.join(arguments)}")
    from rlcore import jobs

    return loaded, jobs.run(loaded, resume)
