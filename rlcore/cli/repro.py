"""`rlcore repro`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rlcore.cli.output import check_json, write_json
from rlcore.errors import UserError
from rlcore.repro import best_of_n, page
from rlcore.repro.experiment import Experiment, Planned, plan, plan_models, read
from rlcore.repro.run import code, do, make_models, refuse_others, train, warm_start


def run(argument: str, seeds: int | None, jobs: int, json_file: str) -> None:
    check_json(json_file)
    name, experiment = read(argument)
    if seeds and seeds > len(experiment.seeds):
        raise UserError(f"--seeds {seeds}: {name} has {len(experiment.seeds)} seeds")
    chosen = experiment.seeds[:seeds]
    models, runs = plan_models(experiment), plan(name, experiment, chosen)
    now = code()
    refuse_others([*models, *runs], now)
    try:
        made = make_models(models, now)
        weights = warm_start(_started_from(experiment, models, runs)) | made
        train(runs, jobs, now)
        results = _results(name, experiment, runs, jobs, now)
    except KeyboardInterrupt:
        print(f"stopped; what is done is kept, go on with: {_command(argument, seeds)}", file=sys.stderr)
        sys.exit(130)
    result = page.document(name, experiment, results, command=_command(name, seeds), models=weights, code=now)
    for line in page.told(result):
        print(line, file=sys.stderr)
    write_json(result, json_file)
    print(page.write(result), file=sys.stderr if json_file == "-" else sys.stdout)


def _started_from(experiment: Experiment, models: Sequence[Planned], runs: Sequence[Planned]) -> list[tuple[str, int]]:
    """The models, by name and seed, that are not of the experiment's own making."""
    own = {str(place) for model in models for place in (model.folder, model.folder / "model")}
    policy = [] if experiment.best_of_n is None else [(experiment.best_of_n.policy, 0)]
    return [*((r.recipe.model, r.recipe.seed) for r in (*models, *runs) if r.recipe.model not in own), *policy]


def _results(name: str, experiment: Experiment, runs: Sequence[Planned], jobs: int, now: str) -> page.Results:
    """By arm and seed, of runs that are done. What is measured of them is so each time: it is a matter of minutes."""
    by_seed = {seed: [run for run in runs if run.seed == seed] for seed in dict.fromkeys(run.seed for run in runs)}
    if (asked := experiment.best_of_n) is None:
        collect = page.KINDS[experiment.kind].collect
        found = {
            seed: {run.name: collect(run.folder, run.recipe, experiment.target) for run in of} for seed, of in by_seed.items()
        }
    else:
        measured = {seed: best_of_n.measurement(name, asked, seed, of) for seed, of in by_seed.items()}
        do(list(measured.values()), jobs, now)
        found = {seed: best_of_n.collect(asked, measured[seed], of) for seed, of in by_seed.items()}
    return {arm: {seed: found[seed][arm] for seed in found} for arm in experiment.measured}


def _command(experiment: str, seeds: int | None) -> str:
    return f"rlcore repro {experiment}" + (f" --seeds {seeds}" if seeds else "")
