"""What an experiment file may say, and the runs that it asks for: every arm with every seed.

title, about    what is compared, and why
base, arms      recipe layers, as `rlcore train` takes them: a run is BASE ARM seed=N threads=1
varies          the keys, each with all below it, in which the resolved recipes of the arms may differ
seeds           shared by the arms; 0 to 9 are for tuning, those of an experiment begin at 100
target          the accuracy that `samples_to_target` and `wall_to_target` ask for
claims          comparisons with a number; see `rlcore.repro.expression`
tried           what was tuned, and on which seeds
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from rlcore.errors import UserError, nearest
from rlcore.recipe.load import differences, load
from rlcore.recipe.schema import RL, Section, Share
from rlcore.repro.expression import Claim, parse
from rlcore.repro.results import METRICS

ARM = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z_0-9]*$")]  # as it stands in a claim's brackets


class Experiment(Section):
    title: str
    about: str
    base: Annotated[list[str], Field(min_length=1)]
    arms: Annotated[dict[ARM, list[str]], Field(min_length=1)]
    varies: tuple[str, ...] = ()
    seeds: Annotated[list[int], Field(min_length=1)]
    target: Share = 0.7
    claims: Annotated[dict[str, str], Field(min_length=1)]
    tried: str | list[str]

    @model_validator(mode="after")
    def _seeds_differ(self) -> Experiment:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is named twice, and would count twice")
        return self

    def parsed(self) -> dict[str, Claim]:
        """The claims by name. Raises UserError for one that is not about metrics and arms that there are."""
        parsed = {name: parse(text) for name, text in self.claims.items()}
        for name, claim in parsed.items():
            for metric, arm in claim.terms:
                if metric not in METRICS:
                    raise UserError(f"claim {name!r}: there is no metric {metric!r}{nearest(metric, METRICS)}")
                if arm not in self.arms:
                    raise UserError(f"claim {name!r}: there is no arm {arm!r}{nearest(arm, list(self.arms))}")
        return parsed


@dataclass(frozen=True)
class Planned:
    """A run that the experiment asks for."""

    arm: str
    seed: int
    folder: Path
    arguments: Sequence[str]  # of `rlcore train`
    recipe: RL


def read(argument: str) -> tuple[str, Experiment]:
    """A shipped experiment by name, or a YAML file; and its name. Raises UserError for anything that is not an experiment."""
    path = Path(argument) if argument.endswith(".yaml") else shipped().get(argument)
    if path is None or not path.is_file():
        raise UserError(f"there is no experiment {argument!r}{nearest(argument, list(shipped()))}")
    try:
        experiment = Experiment.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from error
    except ValidationError as error:
        raise UserError(" | ".join(f"{path}: {_explain(each)}" for each in error.errors())) from None
    experiment.parsed()
    return path.stem, experiment


def shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted(Path(str(resources.files("recipes")), "repro").glob("*.yaml"))}


def plan(name: str, experiment: Experiment, seeds: Sequence[int]) -> list[Planned]:
    """The runs, every arm of a seed before the next seed. Raises UserError where a recipe is none, cannot be measured, or
    differs from the first arm's in a key that `varies` does not name."""
    runs = [_planned(name, experiment, arm, seed) for seed in seeds for arm in experiment.arms]
    recipes = {run.arm: run.recipe.model_dump(mode="json") for run in runs[: len(experiment.arms)]}
    for key in experiment.varies:
        if not any(_has(recipe, key) for recipe in recipes.values()):
            raise UserError(f"`varies` names {key!r}, a key that no arm's recipe has{nearest(key, list(recipes[runs[0].arm]))}")
    for arm, recipe in recipes.items():
        found = [key for key in differences(recipes[runs[0].arm], recipe) if key != "output"]
        if more := [key for key in found if not any(f"{key}.".startswith(f"{allowed}.") for allowed in experiment.varies)]:
            raise UserError(f"arm {arm!r} differs from {runs[0].arm!r} in {', '.join(more)}, which `varies` does not name")
    return runs


def _has(recipe: Any, key: str) -> bool:
    first, _, rest = key.partition(".")
    return isinstance(recipe, Mapping) and first in recipe and (not rest or _has(recipe[first], rest))


def _planned(name: str, experiment: Experiment, arm: str, seed: int) -> Planned:
    folder = Path("runs", "repro", name, arm, str(seed))
    arguments = [*experiment.base, *experiment.arms[arm], f"seed={seed}", "threads=1", f"output={folder}"]
    recipe = load(arguments).recipe
    if not isinstance(recipe, RL) or recipe.eval is None:
        raise UserError(f"arm {arm!r} cannot be measured: an experiment's recipes are `job: rl` with an `eval` section")
    greedy = [text for text in experiment.claims.values() if "greedy_accuracy" in text]
    if greedy and 0 not in recipe.eval.temperatures:
        raise UserError(f"{greedy[0]!r} needs greedy evaluations: add 0 to eval.temperatures")
    return Planned(arm, seed, folder, arguments, recipe)


def _explain(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}{nearest(str(error['loc'][-1]), list(Experiment.model_fields))}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key!r} is missing" if error["type"] == "missing" else f"{key!r}: {message}" if key else message
