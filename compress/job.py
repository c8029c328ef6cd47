"""`job: compress`: a recipe's methods done to its model, measured, and kept as a folder."""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.calibration import Calibration, by_layer, matrices, packed
from compress.compressed import WEIGHTS, CompressedModel, as_stored
from compress.measure import Text, logprobs, measure
from compress.method import Method, fit
from compress.texts import described, texts_of
from rlcore import plugins
from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.prompts import Prompter
from rlcore.recipe.schema import Compress, Plugin
from rlcore.run.console import watched
from rlcore.run.folder import Run

FOLDER = "model"  # of the compressed model, in the run's


@dataclass(frozen=True)
class Plan:
    """A recipe's methods, made; and its texts, read. Nothing is loaded."""

    methods: Sequence[tuple[str, Mapping[str, Any], Method]]
    calibration: Tensor | None  # (rows, length)
    held_out: Sequence[Text]


def plan(recipe: Compress, prompter: Prompter, context: int) -> Plan:
    """Raises UserError for a method that there is not, or that lacks the text it learns from, for problems without solutions,
    and for rows or problems that are longer than the model's `context`."""
    made = [_made(each, recipe.seed) for each in recipe.methods]
    rounded = False
    for name, _, method in made:
        if method.learns and rounded:
            raise UserError(f"{name!r} learns, which it cannot through rounded activations: leave out `activations`")
        rounded = rounded or method.activations is not None
        if recipe.calibration is None and (method.learns or method.looks_at != "nothing"):
            raise UserError(f"{name!r} looks at calibration text: give the recipe `calibration`")
        if recipe.eval is not None and method.activations is not None:
            raise UserError(f"{name!r} rounds activations, which no engine does: leave out `eval`, or `activations`")
    asked, rows = recipe.calibration, None
    if asked is not None:
        if asked.length > context:
            raise UserError(f"calibration.length {asked.length} is more than the model's context of {context} tokens")
        texts = texts_of(asked.data, prompter)
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
        rows = packed([texts[i].ids for i in order], asked.rows, asked.length)
    return Plan(made, rows, texts_of(recipe.evaluated_on, prompter, context))


def _made(asked: Plugin, seed: int) -> tuple[str, dict[str, Any], Method]:
    """A method; one that draws does it by the recipe's seed, unless it is given one of its own."""
    draws = "seed" in inspect.signature(plugins.find("compress", asked.name)).parameters
    options = {"seed": seed, **asked.options} if draws else dict(asked.options)
    return asked.name, options, plugins.bind("compress", asked.name, options)()


def compress(
    recipe: Compress, asked: Plan, run: Run, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> tuple[CompressedModel, dict[str, Any]]:
    """The compressed model, as it is kept in the run's folder; and what is measured of it."""
    dense = functools.cache(lambda: spec.load().eval())
    model = spec.load().eval()
    dtype = getattr(torch, recipe.dtype)
    as_stored(model, dtype)
    weights = matrices(model, recipe.keep_dense)
    calibration = _calibration(recipe, asked, dense)
    compressed = CompressedModel(model, dtype)
    with watched("compressing", sum(method.work(len(weights)) for *_, method in asked.methods)) as progress:
        compressed = fit(compressed, asked.methods, calibration, recipe.keep_dense, progress)
    compressed.save(run.folder / FOLDER, tokenizer)
    if compressed.model is model:
        for step, metrics in enumerate(layer_errors(model, dense(), list(weights)), 1):
            run.log(step, metrics)
    else:  # one of another architecture has no matrices that could be compared
        run.log(1, {"parameters": compressed.model.num_parameters()})
    return compressed, measured(compressed, asked, dense(), run.folder / FOLDER)


def measured(compressed: CompressedModel, asked: Plan, dense: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """Sizes from the file on disk (a weight of a model in which none is compressed has the bits of its dtype), how well it
    predicts held-out problems and solutions, and the seconds of each method."""
    size = compressed.size()
    on_disk = 8 * (folder / WEIGHTS).stat().st_size
    found: dict[str, Any] = {
        "bits_per_weight": (on_disk - size.rest) / size.weights if size.weights else 8 * compressed.dtype.itemsize,
        "bits_per_parameter": on_disk / size.parameters,
        "compressed_weights": size.weights,
        "parameters": size.parameters,
    }
    if asked.held_out:
        with watched("predicting held-out solutions", len(asked.held_out)) as progress:
            found |= measure(compressed.model, asked.held_out, functools.partial(logprobs, dense), progress)
    seconds = {f"{number}. {done['method']}": done["seconds"] for number, done in enumerate(compressed.history, 1)}
    return found | {"method_seconds": seconds, "fit_s": sum(seconds.values())}


def layer_errors(model: PreTrainedModel, dense: PreTrainedModel, names: Sequence[str]) -> Iterator[dict[str, float]]:
    """Of each layer of the model, from the bottom up, ‖W − Ŵ‖² / ‖W‖² over its matrices: of all, and by their kinds. Matrices
    outside of the layers come last."""
    for layer in by_layer(names):
        lost, whole = defaultdict[str, float](float), defaultdict[str, float](float)
        for name in layer:
            weight = dense.get_parameter(name).detach().float()
            error, power = (model.get_parameter(name).detach() - weight).square().sum(), weight.square().sum()
            for part in ("error", f"error/{name.split('.')[-2]}"):
                lost[part] += float(error)
                whole[part] += float(power)
        yield {part: lost[part] / max(whole[part], 1e-30) for part in lost}


def describe(asked: Plan) -> Iterator[str]:
    for name, options, _ in asked.methods:
        yield f"{name}: {', '.join(f'{key} {value}' for key, value in options.items()) or 'as it is by default'}"
    if asked.calibration is not None:
        yield f"calibration: {len(asked.calibration)} rows of {asked.calibration.shape[1]} tokens"
    if asked.held_out:
        yield described(asked.held_out)


def _calibration(recipe: Compress, asked: Plan, dense: Any) -> Calibration:
    if asked.calibration is None:
        return Calibration(torch.zeros(0, 0, dtype=torch.long), dense)
    assert recipe.calibration is not None
    return Calibration(asked.calibration, dense, recipe.calibration.rows_at_once)
