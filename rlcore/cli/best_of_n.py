"""`rlcore reward best-of-n` and `rlcore reward early-rejection`: what a reward model is worth to one who samples."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from rewards.compose import refuse_broken
from rewards.judge import Judge, load_judge
from rewards.trained_on import digest
from rlcore.cli.eval import Asking, EvalOptions, asking
from rlcore.cli.output import check_json, write_json
from rlcore.errors import UserError, nearest
from rlcore.evaluation import best_of_n_plot, early_rejection_plot
from rlcore.evaluation.best_of_n import AGGREGATES, Curve, Pool, best_of, bounds, pools, solution_scores, steps_of
from rlcore.evaluation.early_rejection import Unit, early_rejection
from rlcore.evaluation.statistics import Estimate, accuracy
from rlcore.evaluation.stepwise import Candidates, stepwise
from rlcore.run.console import say, watched
from rlcore.types import Group, Scored

METHODS = ("whole", "stepwise")


def measure_best_of_n(
    options: EvalOptions,
    *,
    judges: Sequence[str],
    counts: str,
    methods: str,
    aggregate: str,
    separator: str,
    height: int,
    plot: str,
    json_file: str,
) -> None:
    check_json(json_file)
    numbers, separator = numbered(counts, "--n", int), unescaped(separator)
    asked_methods = [method.strip() for method in methods.split(",")]
    for method in asked_methods:
        if method not in METHODS:
            raise UserError(f"--method: there is no {method!r}; there are {', '.join(METHODS)}")
    known_aggregate(aggregate)
    specs = dict(named := [_named_judge(text) for text in judges])
    if len(specs) < len(named):
        raise UserError("--judge: two have one name, and one of them would be lost")
    options = replace(options, samples=max(numbers))
    loaded = {name: load_judge(spec) for name, spec in specs.items()}
    for judge in loaded.values():
        judge.check_separator(separator)
    with asking(options) as given:
        asked = without_trained_on(given, loaded.values())
        pool = _pools(asked, options)
        asked = replace(asked, problems=[each.problem for each in pool])
        curves: dict[str, dict[str, Curve]] = {name: {} for name in loaded}
        if "whole" in asked_methods:
            for name, judge in loaded.items():
                curves[name]["whole"] = best_of(pool, whole_scores(name, judge, pool, separator, aggregate), numbers)
        if "stepwise" in asked_methods:
            candidates = Candidates(asked.engine, asked.prompter, asked.sampling, separator, options.seed)
            for name, judge in loaded.items():
                if not judge.of_solutions:
                    most_invalid = options.max_invalid_fraction
                    curves[name]["stepwise"] = _stepwise(name, judge, candidates, asked, numbers, height, most_invalid)
    without = bounds(pool, numbers)
    for line in table(curves, without, numbers):
        print(line, file=sys.stderr)
    if plot:
        best_of_n_plot.draw(Path(plot), curves, without)
    result: dict[str, Any] = {
        "judges": {name: {method: written(curve) for method, curve in of.items()} for name, of in curves.items()},
        **{name: written(curve) for name, curve in without.items()},
        "problems": len(pool),
        "n": numbers,
        "specs": specs,
        "aggregate": aggregate,
        "separator": separator,
        "height": height,
        **given.stated,
    }
    write_json(result, json_file)


def measure_early_rejection(
    options: EvalOptions,
    *,
    judge: str,
    after: str,
    unit: Unit,
    keep: str,
    aggregate: str,
    separator: str,
    plot: str,
    json_file: str,
) -> None:
    check_json(json_file)
    cuts, shares, separator = numbered(after, "--after", int), numbered(keep, "--keep", float), unescaped(separator)
    if max(shares) > 1:
        raise UserError(f"--keep {keep}: a share is above 0 and at most 1")
    if unit not in ("tokens", "steps"):
        raise UserError(f"--unit {unit!r} is neither tokens nor steps")
    known_aggregate(aggregate)
    spec = _spec(judge)
    reward_model = load_judge(spec)
    reward_model.check_separator(separator)
    with asking(options) as given:
        pool = _pools(without_trained_on(given, [reward_model]), options)
        tokenizer = given.prompter.tokenizer
        with watched("judging", 0) as progress:
            final, rejections = early_rejection(
                pool,
                reward_model,
                tokenizer,
                after=cuts,
                unit=unit,
                keep=shares,
                separator=separator,
                aggregate=aggregate,
                progress=progress,
            )
    fewer = best_of(pool, final, range(1, options.samples + 1))
    print(f"  best of {options.samples}: {_percent(fewer[options.samples])}", file=sys.stderr)
    for each in rejections:
        lost = f"{each.lost.value:+.1%} ({each.lost.low:+.1%} to {each.lost.high:+.1%})"
        print(
            f"  after {each.after} {unit}, {each.keep:.0%} kept: {_percent(each.accuracy)}, {each.saved:.0%} of tokens saved, "
            f"lost {lost}, rank correlation {each.correlation:.2f}",
            file=sys.stderr,
        )
    if plot:
        saved = {1 - n / options.samples: curve.value for n, curve in fewer.items()}
        early_rejection_plot.draw(Path(plot), rejections, unit, saved)
    result = {
        "rejections": [asdict(each) for each in rejections],
        "fewer": written(fewer),
        "problems": len(pool),
        "judge": spec,
        "unit": unit,
        "aggregate": aggregate,
        "separator": separator,
        **given.stated,
    }
    write_json(result, json_file)


# -- what both take ------------------------------------------------------------------------------------------------------------


def numbered(text: str, option: str, kind: Callable[[str], float]) -> list[Any]:
    """Positive numbers, from low to high."""
    try:
        numbers = sorted({kind(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] <= 0:
        raise UserError(f"{option} {text!r} is no list of positive numbers, such as 1,2,4")
    return numbers


def unescaped(separator: str) -> str:
    r"""With `\n` for a new line, which shells make hard to write."""
    found = separator.replace("\\n", "\n")
    if not found:
        raise UserError("--separator is what stands between steps: it cannot be empty")
    return found


def known_aggregate(aggregate: str) -> None:
    if aggregate not in AGGREGATES:
        raise UserError(f"--aggregate: there is no {aggregate!r}{nearest(aggregate, list(AGGREGATES))}")


def without_trained_on(asked: Asking, judges: Iterable[Judge]) -> Asking:
    """Without the problems that one of the reward models was trained on."""
    known = frozenset().union(*(judge.trained_on for judge in judges))
    left = [problem for problem in asked.problems if digest(problem.prompt) not in known]
    if len(left) < len(asked.problems):
        say(f"{len(left)} of {len(asked.problems)} problems remain, a reward model was trained on the others")
    if not left:
        raise UserError(f"--data {asked.stated['data']}: no problem is left to be solved")
    return replace(asked, problems=left)


def whole_scores(name: str, judge: Judge, pool: Sequence[Pool], separator: str, aggregate: str) -> list[list[float]]:
    asked = [(each.problem.prompt, steps_of(c.text, separator)) for each in pool for c in each.completions]
    with watched(f"{name}: judging solutions", 0) as progress:
        scores = iter(solution_scores(judge, asked, aggregate, progress))
    return [[next(scores) for _ in each.completions] for each in pool]


def written(curve: Curve) -> dict[str, Any]:
    return {str(n): asdict(estimate) for n, estimate in curve.items()}


def table(curves: Mapping[str, Mapping[str, Curve]], without: Mapping[str, Curve], counts: Sequence[int]) -> list[str]:
    rows = {f"{name}, {method}": curve for name, of in curves.items() for method, curve in of.items()} | dict(without)
    width = max(map(len, rows))
    head = "".join(f"{f'N={n}':>25}" for n in counts)
    return [
        f"  {'':<{width}}{head}",
        *(f"  {name:<{width}}" + "".join(f"{_percent(curve[n]):>25}" for n in counts) for name, curve in rows.items()),
    ]


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _pools(asked: Asking, options: EvalOptions) -> list[Pool]:
    found = pools(asked.evaluate(options))
    if not found:
        raise UserError("of no problem could the grader judge every solution")
    return found


def _stepwise(
    name: str,
    judge: Judge,
    candidates: Candidates,
    asked: Asking,
    counts: Sequence[int],
    height: int,
    max_invalid_fraction: float,
) -> Curve:
    with watched(f"{name}: step by step", len(asked.problems) * len(counts)) as progress:
        solved = stepwise(candidates, judge, asked.problems, counts, height, progress)
    groups = [Group(each.problem, [candidates.completion(each, n)]) for n, row in solved.items() for each in row]
    verdicts = asked.verify(groups)
    refuse_broken([verdicts], max_invalid_fraction)
    scores = iter(verdicts)
    rows = {n: [next(scores) for _ in row] for n, row in solved.items()}
    return {n: accuracy([[score.value] for score in row if isinstance(score, Scored)]) for n, row in rows.items()}


def _named_judge(text: str) -> tuple[str, str | dict[str, Any]]:
    name, equals, spec = text.partition("=")
    if not equals or not name or "{" in name:
        raise UserError(f"--judge {text!r}: give it a name, as in prm=runs/prm")
    return name, _spec(spec)


def _spec(text: str) -> str | dict[str, Any]:
    """A folder, or a YAML mapping that names a make of judges."""
    try:
        spec = yaml.safe_load(text)
        found: str | dict[str, Any] = TypeAdapter(str | dict[str, Any]).validate_python(spec)
    except (yaml.YAMLError, ValidationError):
        raise UserError(f"--judge {text!r} is neither a folder nor a YAML mapping such as {{name: chain_truth}}") from None
    return found
