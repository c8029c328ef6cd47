"""A recipe's `quantised_base`: its model with the matrices rounded, written down before anything is built from it.

    RUN/base/model        a plain checkpoint of the reconstructions, in float32: what policy and engines are made from
    RUN/base/compressed   the same as codes, with the places of the `outliers` that are to learn (`compress.compressed`)

Everyone starts from those files, so that a rank, a worker that replaces another, and a resumed run have the same base and the
same outliers to the bit. On a cluster of several machines the run folder has to be one that all of them see.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from compress.calibration import Calibration
from compress.compressed import CompressedModel, load_held
from compress.formats.patched import Patched
from compress.method import Matrixwise, fit
from compress.outliers import Outliers
from rlcore import models, plugins
from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.recipe.schema import Job, QuantisedBase
from rlcore.run.console import say
from rlcore.run.folder import BASE

MODEL, COMPRESSED = "model", "compressed"


def start_of(recipe: Job, location: str) -> str:
    """Where the model that training starts from is: `location`, or the run's quantised base, made if there is none yet. Raises
    UserError for a quantiser that cannot be."""
    if recipe.quantised_base is None:
        return location
    folder = (Path(recipe.folder) / BASE).absolute()
    method = quantiser(recipe.quantised_base)
    if not folder.exists():
        aside = folder.with_name(".base")
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
        _write(recipe, recipe.quantised_base, method, location, aside)
        aside.rename(folder)
    return str(folder / MODEL)


def quantiser(asked: QuantisedBase) -> Matrixwise:
    """Raises UserError where there is none of that name, or not with these options."""
    method: Any = plugins.bind("compress.quantise", asked.name, asked.options)()
    if method.activations is not None:
        raise UserError(f"quantised_base: {asked.name!r} rounds activations, which no engine does: leave out `activations`")
    if not isinstance(method, Matrixwise) or method.looks_at != "nothing":
        raise UserError(f"quantised_base: {asked.name!r} is no quantiser that rounds a matrix by itself")
    return method


def outliers_of(location: str) -> dict[str, Patched]:
    """Of the quantised base whose plain checkpoint is there, by the name of the matrix, each with a Δ of 0."""
    held = load_held(Path(location).parent / COMPRESSED)
    return {name: weight for name, weight in held.items() if isinstance(weight, Patched)}


@torch.no_grad()
def _write(recipe: Job, asked: QuantisedBase, method: Matrixwise, location: str, folder: Path) -> None:
    model = ModelSpec(location, "float32", recipe.device, recipe.trust_remote_code).load().eval()
    tokenizer = models.load_tokenizer(location, recipe.trust_remote_code)
    if (tuned := recipe.outliers) is not None:
        method = Outliers(method, tuned.share, tuned.score, recipe.seed)
    nothing = Calibration(torch.zeros(0, 0, dtype=torch.long), lambda: model)
    compressed = CompressedModel(model, getattr(torch, recipe.dtype))
    compressed = fit(compressed, [(asked.name, asked.options, method)], nothing, asked.keep_dense)
    compressed.save(folder / COMPRESSED, tokenizer)
    compressed.export(folder / MODEL, tokenizer, torch.float32)
    size = compressed.size()
    say(f"quantised base: {len(compressed.held)} matrices by {asked.name}, {size.per_weight:.3g} bits a weight")
