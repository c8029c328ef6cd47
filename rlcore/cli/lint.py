"""`rlcore reward lint`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict

from rich.markup import escape
from rich.table import Table

from rewards.compose import Rewards
from rewards.lint import Payment, Report, lint
from rewards.probes import PROBES
from rlcore import models
from rlcore.cli.output import check_json, write_json
from rlcore.data.mixture import Mixture
from rlcore.errors import UserError
from rlcore.length_budget import for_training
from rlcore.prompts import Prompter
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from rlcore.run.console import TERMINAL, say
from rlcore.toy import warmstart
from rlcore.types import Problem

PROBLEMS = 8  # the first that the run would train on
STYLES = {"ok": "green", "warn": "yellow", "broken": "bold red"}


def run(arguments: Sequence[str], json_file: str) -> None:
    """What each probe is paid, and a line per finding. Ends the process with status 1 where a component is broken."""
    check_json(json_file)
    recipe = load(arguments).recipe
    if not isinstance(recipe, RL):
        raise UserError(f"reward lint probes the rewards of a recipe of `job: rl`, and this one is of `job: {recipe.job}`")
    with closing(Rewards(recipe.rewards, max_invalid_fraction=1.0)) as rewards:
        problems = _problems(recipe)
        location = warmstart.architecture(recipe.model, recipe.seed)
        prompter = Prompter(recipe.prompt, models.load_tokenizer(location, recipe.trust_remote_code))
        report = lint(rewards, problems, prompter, recipe.rollout.sampling)
    bare = "" if any(problem.meta.get("solution") for problem in problems) else ", without steps: the data has no solutions"
    say(f"{len(problems)} problems; the references are written as {report.form!r}{bare}")
    if report.payments:
        TERMINAL.print(_table(report.payments), soft_wrap=False)
    widest = max([10, *(len(found.component) for found in report.findings)])
    for found in report.findings:
        told = f"{found.status:<7} {found.check:<12} {found.component:<{widest}} {found.told}"
        TERMINAL.print(told, style=STYLES[found.status], markup=False)
    write_json(_result(report), json_file)
    if report.broken:
        sys.exit(1)


def _problems(recipe: RL) -> list[Problem]:
    first = Mixture(recipe.data, recipe.seed).next(PROBLEMS)
    drawn = {problem.id: for_training(problem, recipe.length_budget, recipe.seed, step=1) for problem in first}
    answered = [problem for problem in drawn.values() if problem.answer]
    if not answered:
        raise UserError(f"none of the first {len(drawn)} problems has an answer, of which a reference could be made")
    return answered


def _table(payments: Sequence[Payment]) -> Table:
    """A row per probe: the mean over the problems of what each component and all of them pay."""
    components = list(payments[0].values)
    table = Table("probe", *map(escape, components), "paid in all")
    for name in PROBES:
        of_it = [payment for payment in payments if payment.probe == name]
        cells = [_mean([payment.values[label] for payment in of_it]) for label in components]
        table.add_row(name, *cells, _mean([payment.total for payment in of_it]))
    return table


def _mean(values: Sequence[float | None]) -> str:
    judged = [value for value in values if value is not None]
    invalid = f"{len(values) - len(judged)} invalid" if len(judged) < len(values) else ""
    mean = f"{sum(judged) / len(judged):.4g}" if judged else ""
    return ", ".join(part for part in (mean, invalid) if part)


def _result(report: Report) -> dict[str, object]:
    return {"ok": not report.broken, **asdict(report)}
