"""What an experiment file may say, and the runs that it asks for: every arm with every seed.

title, about    what is compared, and why
base, arms      recipe layers, as `rlcore train` takes them: a run is BASE ARM seed=N threads=1
models          what all arms and seeds share and none of them makes, such as a reward model, or the trees that it learns from:
                recipe layers by name, run once before the arms. `{NAME}` in the layers of an arm, or of a model further down,
                is that model's run folder: the same in every experiment that has the same layers
varies          the keys, each with all below it, in which the resolved recipes of the arms may differ
seeds           shared by the arms; 0 to 9 are for tuning, those of an experiment begin at 100
best_of_n       where the arms are reward models: which policy they choose for, among how many samples
panels          of the plot, by name (`rlcore.repro.training`): held-out accuracy by completions and by seconds, unless given
target          the accuracy that `samples_to_target` and `wall_to_target` ask for
claims          comparisons with a number; see `rlcore.repro.expression`
tried           what was tuned, and on which seeds

The job of the recipes says what is measured of them: `rlcore.repro.KIND` for the kinds in KINDS.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, PositiveInt, ValidationError, model_validator

from rlcore.errors import UserError, nearest
from rlcore.recipe.load import differences, job, load
from rlcore.recipe.schema import RL, Recipe, Section, Sft, Share
from rlcore.repro import compression, decoding, evaluations, preferences, sensitivity, supervised, training
from rlcore.repro.expression import Claim, parse

KINDS = {
    "rl": "training",
    "reward_model": "best_of_n",
    "preference": "preferences",
    "compress": "compression",
    "sensitivity": "sensitivity",
    "decode_bench": "decoding",
    "sft": "supervised",
    "eval": "evaluations",
}
METRICS = {
    "training": training.METRICS,
    "preferences": preferences.METRICS,
    "compression": compression.METRICS,
    "supervised": supervised.METRICS,
    "evaluations": evaluations.METRICS,
}
METRICS_OF_RECIPES = {"sensitivity": sensitivity.metrics, "decoding": decoding.metrics}
NAME = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z_0-9]*$")]  # as it stands in a claim's brackets


class BestOfN(Section):
    """What `rlcore reward best-of-n` is to measure of the arms' reward models."""

    policy: str
    data: dict[str, Any]  # the problems, as in a recipe
    n: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 4, 8, 16, 24)
    controls: dict[NAME, dict[str, Any]] = Field(default_factory=dict)  # judges that nobody trains, measured beside the arms
    aggregate: str = "min"
    separator: Annotated[str, Field(min_length=1)] = "\n\n"
    max_new_tokens: PositiveInt

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*(f"{method}_{n}" for method in ("whole", "stepwise") for n in self.n), "auc", "gain")


class Experiment(Section):
    title: str
    about: str
    base: Annotated[list[str], Field(min_length=1)]
    arms: Annotated[dict[NAME, list[str]], Field(min_length=1)]
    models: dict[NAME, Annotated[list[str], Field(min_length=1)]] = Field(default_factory=dict)
    best_of_n: BestOfN | None = None
    varies: tuple[str, ...] = ()
    seeds: Annotated[list[int], Field(min_length=1)]
    panels: tuple[str, ...] = ()
    target: Share = 0.7
    claims: Annotated[dict[str, str], Field(min_length=1)]
    tried: str | list[str]

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is named twice, and would count twice")
        if len(set(self.measured)) < len(self.measured):
            raise ValueError("an arm has the name of a control, or of `pass` or `majority`, which stand beside the arms")
        for panel in self.panels:
            if panel not in training.PANELS:
                raise ValueError(f"there is no panel {panel!r}{nearest(panel, list(training.PANELS))}")
        return self

    @property
    def kind(self) -> str:
        """By the job of the first arm. Raises UserError where that has none."""
        if (found := job(self.layers(next(iter(self.arms))))) not in KINDS:
            raise UserError(f"arms of job: {found} cannot be measured: an experiment is of job {', '.join(KINDS)}")
        return KINDS[found]

    @functools.cached_property
    def metrics(self) -> tuple[str, ...]:
        if self.best_of_n is not None:
            return self.best_of_n.metrics
        if self.kind in METRICS_OF_RECIPES:
            of, recipes = METRICS_OF_RECIPES[self.kind], [load(self.layers(arm)).recipe for arm in self.arms]
            return tuple(dict.fromkeys(metric for recipe in recipes for metric in of(recipe)))
        return METRICS[self.kind]

    def layers(self, arm: str) -> list[str]:
        """Of an arm's recipe, with the folders of models in their places."""
        return _filled([*self.base, *self.arms[arm]], _model_folders(self))

    @property
    def measured(self) -> list[str]:
        """What claims may be about: the arms, and what is measured beside them."""
        return [*self.arms, *((*self.best_of_n.controls, "pass", "majority") if self.best_of_n else ())]

    def parsed(self) -> dict[str, Claim]:
        """The claims by name. Raises UserError for one that is not about metrics and arms that there are."""
        parsed = {name: parse(text) for name, text in self.claims.items()}
        for name, claim in parsed.items():
            for metric, arm in claim.terms:
                if metric not in self.metrics:
                    raise UserError(f"claim {name!r}: there is no metric {metric!r}{nearest(metric, self.metrics)}")
                if arm not in self.measured:
                    raise UserError(f"claim {name!r}: there is no arm {arm!r}{nearest(arm, self.measured)}")
        return parsed


@dataclass(frozen=True)
class Task:
    """A process of an experiment."""

    title: str  # what people are told that it is
    folder: Path  # its log stands beside it
    command: Sequence[str]  # of `rlcore`


@dataclass(frozen=True)
class Planned(Task):
    """A run that the experiment asks for: of an arm with a seed, or of a model that all of these share."""

    name: str
    seed: int
    recipe: Recipe


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
    if experiment.panels and experiment.kind != "training":
        raise UserError(f"{path}: there is no panel {experiment.panels[0]!r}: `panels` are of arms that train a policy")
    return path.stem, experiment


def shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted(Path(str(resources.files("recipes")), "repro").glob("*.yaml"))}


def plan_models(experiment: Experiment) -> list[Planned]:
    """The runs that make the shared models, in the order in which they may build on each other. Raises UserError where a recipe
    is none, or makes no such model, and where no layer asks for a model."""
    runs: list[Planned] = []
    folders = _model_folders(experiment)
    asking = [*experiment.base, *itertools.chain(*experiment.arms.values(), *experiment.models.values())]
    for model, layers in experiment.models.items():
        if not any(f"{{{model}}}" in layer for layer in asking):
            raise UserError(f"model {model!r} is in no layer: write {{{model}}} where its folder goes")
        arguments = [*_filled(layers, folders), "threads=1", f"output={folders[model]}"]
        recipe = load(arguments).recipe
        if isinstance(recipe, RL):
            raise UserError(
                f"model {model!r} is a `job: rl`: what an experiment shares is supervised, a reward model, or trees"
            )
        runs.append(Planned(f"model {model}", folders[model], _command(arguments, recipe), model, recipe.seed, recipe))
    return runs


def plan(name: str, experiment: Experiment, seeds: Sequence[int]) -> list[Planned]:
    """The runs, every arm of a seed before the next seed. Raises UserError where a recipe is none, cannot be measured, or
    differs from the first arm's in a key that `varies` does not name."""
    runs = [_planned(name, experiment, arm, seed) for seed in seeds for arm in experiment.arms]
    recipes = {run.name: run.recipe.model_dump(mode="json") for run in runs[: len(experiment.arms)]}
    for key in experiment.varies:
        if not any(_has(recipe, key) for recipe in recipes.values()):
            known = nearest(key, list(recipes[runs[0].name]))
            raise UserError(f"`varies` names {key!r}, a key that no arm's recipe has{known}")
    for arm, recipe in recipes.items():
        found = [key for key in differences(recipes[runs[0].name], recipe) if key != "output"]
        if more := [key for key in found if not any(f"{key}.".startswith(f"{allowed}.") for allowed in experiment.varies)]:
            raise UserError(f"arm {arm!r} differs from {runs[0].name!r} in {', '.join(more)}, which `varies` does not name")
    return runs


def _has(recipe: Any, key: str) -> bool:
    first, _, rest = key.partition(".")
    return isinstance(recipe, Mapping) and first in recipe and (not rest or _has(recipe[first], rest))


def _planned(name: str, experiment: Experiment, arm: str, seed: int) -> Planned:
    folder = Path("runs", "repro", name, arm, str(seed))
    arguments = [*experiment.layers(arm), f"seed={seed}", "threads=1", f"output={folder}"]
    recipe = load(arguments).recipe
    _refuse_unmeasured(experiment, arm, recipe)
    return Planned(f"{arm}, seed {seed}", folder, _command(arguments, recipe), arm, seed, recipe)


def _refuse_unmeasured(experiment: Experiment, arm: str, recipe: Recipe) -> None:
    if KINDS.get(recipe.job) != experiment.kind:
        raise UserError(f"arm {arm!r} is of job: {recipe.job}, and the first arm of another: they cannot be compared")
    if (experiment.best_of_n is None) == (experiment.kind == "best_of_n"):
        raise UserError(f"arm {arm!r} cannot be measured: `best_of_n` goes with recipes of job: reward_model, and they with it")
    if isinstance(recipe, Sft) and recipe.evaluated_on is None:
        raise UserError(f"arm {arm!r} cannot be measured: a recipe of job: sft needs `evaluated_on`")
    if not isinstance(recipe, RL):
        return
    if recipe.eval is None:
        raise UserError(f"arm {arm!r} cannot be measured: a recipe of job: rl needs an `eval` section")
    greedy = [text for text in experiment.claims.values() if "greedy_accuracy" in text]
    if greedy and 0 not in recipe.eval.temperatures:
        raise UserError(f"{greedy[0]!r} needs greedy evaluations: add 0 to eval.temperatures")
    watched = [text for text in experiment.claims.values() if "alarm" in text]
    if watched and recipe.monitor is None:
        raise UserError(f"{watched[0]!r} needs the hack monitor, and arm {arm!r} has `monitor: null`")


def _command(arguments: Sequence[str], recipe: Recipe) -> Sequence[str]:
    return (*recipe.verb.split(), *arguments, "--resume")


def _filled(layers: Sequence[str], folders: Mapping[str, Path]) -> list[str]:
    """The layers with the folders of models in their places."""
    for model, folder in folders.items():
        layers = [layer.replace(f"{{{model}}}", str(folder)) for layer in layers]
    return list(layers)


def _model_folders(experiment: Experiment) -> dict[str, Path]:
    """Of each model, named by what makes it, the models that it builds on included: experiments that ask for the same share
    it."""
    folders: dict[str, Path] = {}
    for model, layers in experiment.models.items():
        made_by = hashlib.sha256("\n".join(_filled(layers, folders)).encode()).hexdigest()
        folders[model] = Path("runs", "repro", "models", f"{model}-{made_by[:8]}")
    return folders


def _explain(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}{nearest(str(error['loc'][-1]), list(Experiment.model_fields))}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key!r} is missing" if error["type"] == "missing" else f"{key!r}: {message}" if key else message
