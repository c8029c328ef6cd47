"""`rlcore repro`."""

from __future__ import annotations

import sys

from rlcore.cli.output import check_json, write_json
from rlcore.errors import UserError
from rlcore.repro import page
from rlcore.repro.experiment import plan, plan_models, read
from rlcore.repro.results import collect
from rlcore.repro.run import code, make_models, refuse_others, train, warm_start


def run(argument: str, seeds: int | None, jobs: int, json_file: str) -> None:
    check_json(json_file)
    name, experiment = read(argument)
    if seeds and seeds > len(experiment.seeds):
        raise UserError(f"--seeds {seeds}: {name} has {len(experiment.seeds)} seeds")
    chosen = experiment.seeds[:seeds]
    models, runs = plan_models(name, experiment), plan(name, experiment, chosen)
    refuse_others([*models, *runs])
    try:
        made = make_models(models)
        weights = warm_start([*models, *runs]) | made
        train(runs, jobs)
    except KeyboardInterrupt:
        print(f"stopped; what is done is kept, go on with: {_command(argument, seeds)}", file=sys.stderr)
        sys.exit(130)
    results = {
        arm: {each.seed: collect(each.folder, each.recipe, experiment.target) for each in runs if each.name == arm}
        for arm in experiment.arms
    }
    result = page.document(name, experiment, results, command=_command(name, seeds), models=weights, code=code())
    for line in page.told(result):
        print(line, file=sys.stderr)
    write_json(result, json_file)
    print(page.write(result), file=sys.stderr if json_file == "-" else sys.stdout)


def _command(experiment: str, seeds: int | None) -> str:
    return f"rlcore repro {experiment}" + (f" --seeds {seeds}" if seeds else "")
