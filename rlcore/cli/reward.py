"""`rlcore reward eval`."""

from __future__ import annotations

import sys
from pathlib import Path

from rewards.calibration import reliability
from rewards.calibration_plot import draw
from rewards.judge import load_judge
from rewards.judged_text import Asked
from rewards.trained_on import digest
from rlcore import models, plugins
from rlcore.cli.named import named
from rlcore.cli.output import check_json, write_json
from rlcore.data.steps import AnnotatedSolution, LabelledSolution
from rlcore.errors import UserError
from rlcore.evaluation.steps import JudgedSolution, labelled_steps, step_measures
from rlcore.run.console import say, watched


def evaluate(
    model: str, data: str, threshold: float, keep_trained_on: bool, plot: str, json_file: str, judge: str = "trained"
) -> None:
    check_json(json_file)
    if not 0 < threshold < 1:
        raise UserError(f"--threshold {threshold:g} is a probability: it must be above 0 and below 1")
    kind = named(judge, "--judge", "qwen_math_prm")
    if "model" in kind:
        raise UserError(f"--judge {judge}: say which model with --model")
    solutions = _solutions(data)
    reward_model = load_judge({**kind, "model": models.locate(model)})
    if reward_model.of_solutions:
        raise UserError(f"{model} judges whole solutions, and this measures steps: see rlcore reward best-of-n")
    if reward_model.trained_on and not keep_trained_on:
        before = len(solutions)
        solutions = [solution for solution in solutions if digest(solution.problem) not in reward_model.trained_on]
        say(f"{len(solutions)} of {before} solutions remain, the others are of problems that the model was trained on")
    if not solutions:
        raise UserError(f"--data {data}: no solution is left to be judged")
    asked = [Asked(s.problem, s.steps[:i], s.steps[i : i + 1]) for s in solutions for i in range(len(s.steps))]
    with watched("judging steps", len(asked)) as progress:
        found = iter(reward_model.log_odds(asked, progress))
    pairs = [(s, [z for _ in s.steps if (z := next(found)) is not None]) for s in solutions]
    judged = [JudgedSolution(solution, read) for solution, read in pairs if len(read) == len(solution.steps)]
    if len(judged) < len(solutions):
        say(f"{len(solutions) - len(judged)} of {len(solutions)} solutions left out: longer than the reward model can read")
    if not judged:
        raise UserError(f"--data {data}: no solution is short enough for the reward model")
    result = step_measures(judged, threshold)
    if plot:
        draw(Path(plot), {"calibrated" if kind["name"] == "trained" else kind["name"]: reliability(*labelled_steps(judged))})
    for name, value in result.items():
        print(f"  {name:<12} {value:.4g}", file=sys.stderr)
    write_json({"model": model, "judge": judge, "data": data, "threshold": threshold, **result}, json_file)


def _solutions(data: str) -> list[LabelledSolution]:
    """With a verdict on each step; of solutions that were judged candidate by candidate, the chosen ones."""
    spec = named(data, "--data", "prmbench")
    read = plugins.bind("rlcore.data.formats", spec.pop("name"), spec)()
    if any(not isinstance(each, LabelledSolution | AnnotatedSolution) for each in read):
        raise UserError(
            f"--data {data}: these are no solutions with a verdict on each step (trees hold Monte-Carlo scores: measure with "
            "rlcore reward best-of-n)"
        )
    usable = [each for each in read if "unusable" not in each.meta]
    if len(usable) < len(read):
        say(f"{len(read) - len(usable)} of {len(read)} solutions are unusable")
    return [each.trajectory if isinstance(each, AnnotatedSolution) else each for each in usable]
