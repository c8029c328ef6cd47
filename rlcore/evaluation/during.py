"""Evaluation while a run trains: the same problems and seeds every time, more thorough before and after, and the summary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from rlcore.evaluation.evaluate import Verify, evaluate
from rlcore.length_budget import for_evaluation
from rlcore.prompts import Prompter
from rlcore.protocols import Engine
from rlcore.recipe.schema import RL
from rlcore.types import Problem


class PeriodicEvaluation:
    """Called with a step; metrics named eval/… where one is due (step 0, then every `eval.every` steps), else {}. Within
    `exactly` the engine serves the policy itself."""

    def __init__(
        self,
        recipe: RL,
        problems: Sequence[Problem],
        engine: Engine,
        prompter: Prompter,
        verify: Verify,
        exactly: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        assert recipe.eval is not None
        self.exactly = exactly
        self.spec, self.steps = recipe.eval, recipe.steps
        self.problems, self.engine, self.prompter, self.verify = problems, engine, prompter, verify
        limit = self.spec.max_new_tokens or recipe.rollout.max_new_tokens
        self.sampling = replace(recipe.rollout.sampling, max_new_tokens=limit)
        self.max_invalid_fraction = recipe.algorithm.max_invalid_fraction
        self.length_budget = recipe.length_budget
        self._known: dict[tuple[int, int, float], dict[str, float]] = {}  # by weight version, step and temperature

    def __call__(self, step: int) -> dict[str, float]:
        if step % self.spec.every and step != self.steps:
            return {}
        return {f"eval/{name}": value for name, value in self._at(step, self.sampling.temperature).items()}

    def thorough(self, step: int) -> dict[str, dict[str, float]]:
        """Summaries after a step by temperature: the rollout's and every one in `eval.temperatures`."""
        temperatures = dict.fromkeys([self.sampling.temperature, *self.spec.temperatures])
        return {f"{temperature:g}": self._at(step, temperature) for temperature in temperatures}

    def _at(self, step: int, temperature: float) -> dict[str, float]:
        key = (self.engine.version, step, temperature)
        if key not in self._known:
            sampling = replace(self.sampling, temperature=temperature)
            with self.exactly():
                done = evaluate(
                    self.engine,
                    self.prompter,
                    [for_evaluation(problem, self.length_budget, self.spec.seed, step) for problem in self.problems],
                    self.verify,
                    self.spec.samples,
                    sampling,
                    self.spec.seed,
                    self.max_invalid_fraction,
                )
            self.engine.metrics()  # of the evaluation, that the next step would report as its own
            self._known[key] = done.summary()
        return self._known[key]


def compare(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]], temperature: float) -> dict[str, Any]:
    """summary.json's comparison of two thorough evaluations: each number of `before` and `after` at the rollout temperature,
    greedy accuracy where 0 is among the temperatures and, where several were measured, the starting model's best."""
    result: dict[str, Any] = {}
    for when, sweep in (("before", before), ("after", after)):
        main = sweep[f"{temperature:g}"]
        for name, value in main.items():
            result[_named(name, when)] = value
        for end in ("", "_low", "_high"):
            if "0" in sweep:
                result[f"greedy_accuracy_{when}{end}"] = sweep["0"][f"accuracy{end}"]
    if len(before) == 1:
        return result
    best = max(before, key=lambda t: before[t]["accuracy"])
    result["best_temperature_before"] = float(best)
    for end in ("", "_low", "_high"):
        result[f"accuracy_before_best_temperature{end}"] = before[best][f"accuracy{end}"]
    return result | {"temperatures_before": _accuracies(before), "temperatures_after": _accuracies(after)}


def _named(name: str, when: str) -> str:
    for end in ("_low", "_high"):
        if name.endswith(end):
            return f"{name.removesuffix(end)}_{when}{end}"
    return f"{name}_{when}"


def _accuracies(sweep: dict[str, dict[str, float]]) -> dict[str, float]:
    return {temperature: sweep[temperature]["accuracy"] for temperature in sorted(sweep, key=float)}
