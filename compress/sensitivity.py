"""`job: sensitivity`: what changes of equal norm cost a model, by their kind and strength (`compress.perturbation`), and beside
them what quantisers cost, by the norm that theirs comes to.

Everything is measured on a model that is dense but for the one change, against what it says without; noise of one seed is the
same at every strength. Weights are changed matrix by matrix, what matrices are given token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from compress.activations import Activations, rounded
from compress.altered import Change, altered
from compress.calibration import by_layer, matrices
from compress.compressed import as_stored
from compress.measure import Logprobs, Text, measure, remembered
from compress.perturbation import perturbed, perturbed_matrix
from compress.rounding import Rounding, round_to_grid
from compress.texts import described, texts_of
from rlcore import plugins
from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.prompts import Prompter
from rlcore.protocols import Progress
from rlcore.recipe.schema import Perturbation, Sensitivity
from rlcore.run.console import watched
from rlcore.run.folder import Run

DENSE = "dense"
Solve = Callable[[PreTrainedModel], float]  # accuracy


@dataclass(frozen=True)
class Plan:
    """A recipe's quantisers by label, made; and its texts, read. Nothing is loaded."""

    quantisers: Mapping[str, Rounding]
    held_out: Sequence[Text]


@dataclass(frozen=True)
class Measurement:
    """`norm`: of the change, relative to what is changed, over all matrices; `input_norm`: over all that they were given."""

    of: str  # a kind of perturbation, a quantiser's label, or `dense`
    strength: float | None  # None: it has none
    layer: int | None  # from 1 on; None: all of them
    norm: float | None
    input_norm: float | None
    perplexity: float
    solution: float
    divergence: float
    accuracy: float | None  # None: it was not asked to solve anything


def plan(recipe: Sensitivity, prompter: Prompter, context: int) -> Plan:
    """Raises UserError for a quantiser that there is not, and for problems without solutions, or longer than `context`."""
    made = {}
    for each in recipe.quantisers:
        method = plugins.bind("compress", each.name, each.options)()
        if not isinstance(method, Rounding):
            raise UserError(f"{each.name!r} rounds to no grid: quantisers are those of compress/quantise")
        made[each.label] = method
    return Plan(made, texts_of(recipe.evaluated_on, prompter, context))


def describe(recipe: Sensitivity, asked: Plan, layers: int) -> Iterator[str]:
    yield f"perturbed {recipe.perturb}: {', '.join(recipe.kinds)}, by {', '.join(f'{s:g}' for s in recipe.strengths)}"
    if asked.quantisers:
        yield f"quantisers: {', '.join(asked.quantisers)}"
    yield described(asked.held_out)
    yield f"measurements: {count(recipe, asked, layers)}"


def count(recipe: Sensitivity, asked: Plan, layers: int) -> int:
    return 1 + len(recipe.kinds) * len(recipe.strengths) + len(asked.quantisers) + len(recipe.layers) * layers


def sensitivity(
    recipe: Sensitivity, asked: Plan, run: Run, spec: ModelSpec, solve: Solve | None = None
) -> tuple[list[Measurement], dict[str, Any]]:
    """Every measurement; and what they come to at `compared_at`. Each layer alone solves nothing."""
    model = spec.load().eval()
    as_stored(model, getattr(torch, recipe.dtype))
    weights = matrices(model, recipe.keep_dense)
    layers = by_layer(weights)
    texts = asked.held_out
    with watched("measuring", len(texts) * (1 + count(recipe, asked, len(layers)))) as progress:
        lens = Lens(model, texts, remembered(model, texts, progress), progress)
        found = [lens.look(DENSE, {}, Change(), solve=solve)]
        for step, strength in enumerate(recipe.strengths, 1):
            at = [lens.look(k, weights, _perturbing(recipe, model, k, strength), strength, solve=solve) for k in recipe.kinds]
            run.log(step, {"strength": strength, **{f"divergence/{each.of}": each.divergence for each in at}})
            found += at
        for label, method in asked.quantisers.items():
            found.append(lens.look(label, weights, _quantising(recipe, method), solve=solve))
        for layer, names in enumerate(layers if recipe.layers else [], 1):
            of, strength = {name: weights[name] for name in names}, recipe.compared_at
            alone = [lens.look(k, of, _perturbing(recipe, model, k, strength), strength, layer) for k in recipe.layers]
            run.log(layer, {f"layer_divergence/{each.of}": each.divergence for each in alone})
            found += alone
    return found, _summary(recipe, found)


@dataclass(frozen=True)
class Lens:
    """What is looked at: a model, by what it says of texts, and what it said of them when it was dense."""

    model: PreTrainedModel
    texts: Sequence[Text]
    dense: Logprobs
    progress: Progress

    def look(
        self,
        of: str,
        weights: Mapping[str, nn.Parameter],
        change: Change,
        strength: float | None = None,
        layer: int | None = None,
        solve: Solve | None = None,
    ) -> Measurement:
        with altered(self.model, weights, change) as norms:
            said = measure(self.model, self.texts, self.dense, self.progress)
            accuracy = None if solve is None else solve(self.model)
        return Measurement(of, strength, layer, norms.weights.value, norms.inputs.value, **said, accuracy=accuracy)


def _perturbing(recipe: Sensitivity, model: PreTrainedModel, kind: Perturbation, strength: float) -> Change:
    noise = torch.Generator(model.device).manual_seed(recipe.seed)
    settings: Any = dict(kind=kind, strength=strength, noise=noise)
    return Change(
        partial(perturbed_matrix, **settings) if recipe.perturb != "activations" else None,
        partial(perturbed, **settings) if recipe.perturb != "weights" else None,
    )


def _quantising(recipe: Sensitivity, method: Rounding) -> Change:
    """Of weights and activations what the recipe is about: W8A8 on activations leaves the weights alone."""
    bits = method.activations
    return Change(
        (lambda matrix: round_to_grid(matrix, method.grid, method.bits, method.run, method.clips).decode())
        if recipe.perturb != "activations"
        else None,
        None if bits is None else lambda inputs: rounded(inputs, Activations(method.grid, bits)),
    )


def _summary(recipe: Sensitivity, found: Sequence[Measurement]) -> dict[str, Any]:
    """The dense model, and by kind (at `compared_at`) and quantiser the norm, the KL to it, perplexity and the rest."""
    dense, *changed = found
    compared = {each.of: each for each in changed if each.layer is None and each.strength in (None, recipe.compared_at)}
    summary: dict[str, Any] = {
        "perturbed": recipe.perturb,
        "compared_at": recipe.compared_at,
        "dense": {"perplexity": dense.perplexity, "solution": dense.solution},
        "norm": {of: each.input_norm if recipe.perturb == "activations" else each.norm for of, each in compared.items()},
        "kl": {of: each.divergence for of, each in compared.items()},
        "perplexity": {of: each.perplexity for of, each in compared.items()},
        "solution": {of: each.solution for of, each in compared.items()},
    }
    if dense.accuracy is not None:
        summary["dense"]["accuracy"] = dense.accuracy
        summary["accuracy"] = {of: each.accuracy for of, each in compared.items()}
    return summary
