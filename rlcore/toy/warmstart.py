"""`toy:NAME`: the model that the shipped recipe `toy/NAME` makes, trained once and kept by the hash of all that it depends on.

A toy recipe is an ordinary `job: sft`; its own `model` may be `scratch:SIZE` or another toy, so a toy's schooling is a chain of
recipes: first it learns to write out steps, then the mix of strategies that reinforcement learning will find it with.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from compress.compressed import is_compressed
from compress.written_out import written_out
from rlcore import models
from rlcore.data.mixture import load as load_problems
from rlcore.errors import UserError, nearest
from rlcore.prompts import Prompter
from rlcore.recipe.load import load, shipped
from rlcore.recipe.schema import Job, Sft
from rlcore.run.console import Console, say
from trainers import sft
from trainers.build import build_policy

PREFIX = "toy:"
TRAINED_BY = ("rlcore.data.mixture", "rlcore.prompts", "rlcore.toy.model", "trainers.near_reference", "trainers.sft")
WORLDS = {  # what makes the problems of a data source
    "chain": ("rlcore.toy.world", "rlcore.data.sources.chain"),
    "classification": ("rlcore.data.splits", "rlcore.data.sources.classification"),
    "toy_knights": ("rlcore.data.knights", "rlcore.toy.knights", "rlcore.data.sources.toy_knights"),
}


def resolve(name: str, seed: int) -> str:
    """A model name as the folder or hub id of a plain checkpoint: a toy is trained first, and a compressed model written out,
    if that has not been done on this machine."""
    if not name.startswith(PREFIX):
        found = models.locate(name, seed)
        return written_out(Path(found)) if is_compressed(Path(found)) else found
    recipe = _recipe(name.removeprefix(PREFIX))
    parent = resolve(recipe.model, recipe.seed)
    key = f"toy-{name.removeprefix(PREFIX)}-{_digest(recipe, parent)}"
    return str(models.cached(key, lambda folder: _train(recipe, parent, folder)) / "model")


def architecture(name: str, seed: int) -> str:
    """Where the configuration and tokenizer of a model are, without training anything: a toy has those of its scratch model."""
    while name.startswith(PREFIX):
        recipe = _recipe(name.removeprefix(PREFIX))
        name, seed = recipe.model, recipe.seed
    return models.locate(name, seed)


def _recipe(name: str) -> Sft:
    toys = [path.removeprefix("toy/") for path in shipped() if path.startswith("toy/")]
    if name not in toys:
        raise UserError(f"there is no toy:{name}{nearest(name, toys)}")
    recipe = load([f"toy/{name}"]).recipe
    assert isinstance(recipe, Sft)
    return recipe


def _digest(recipe: Sft, parent: str) -> str:
    """Changes with what the recipe says of training, the parent, the code that makes problems and trains on them, and the
    libraries' versions."""
    modules = [*(module for source in recipe.data for module in WORLDS[source.name]), *TRAINED_BY]
    code = [_source(module) for module in modules]
    trained = (set(Sft.model_fields) - set(Job.model_fields)) | {"optimizer", "lora", "dtype", "seed"}
    said = recipe.model_dump(mode="json", include=trained, exclude_none=True)
    libraries = [version(package) for package in ("torch", "transformers", "trl")]
    dependencies = json.dumps([said, parent.removeprefix(str(models.cache_dir())), code, libraries])
    return hashlib.sha256(dependencies.encode()).hexdigest()[:12]


def _source(module: str) -> str:
    """Its text, without importing it: some take seconds."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _train(recipe: Sft, parent: str, folder: Path) -> None:
    problems = load_problems(recipe.data)
    steps = recipe.epochs * -(-len(problems) // recipe.batch_size)
    console = Console(f"toy:{recipe.name}", steps)
    say(f"making toy:{recipe.name}, {steps} steps of supervised training; once, then kept in {models.cache_dir()}")
    console.start(0)
    tokenizer = models.load_tokenizer(parent)
    policy = build_policy(recipe, parent)
    try:
        sft.train(
            recipe,
            policy,
            tokenizer,
            Prompter(recipe.prompt, tokenizer),
            problems,
            folder,
            console.follow,
        )
    finally:
        console.stop()
