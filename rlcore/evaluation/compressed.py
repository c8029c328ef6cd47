"""How many held-out problems a compressed model solves."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from compress.compressed import CompressedModel
from rlcore.evaluation.solved import solved
from rlcore.models import ModelSpec
from rlcore.prompts import Prompter
from rlcore.recipe.schema import Altered, Asked


def solved_compressed(recipe: Altered, asked: Asked, compressed: CompressedModel, prompter: Prompter) -> dict[str, float]:
    """`rlcore.evaluation.evaluate.Evaluation.summary` of the reconstructions."""
    with tempfile.TemporaryDirectory() as folder:
        compressed.export(Path(folder), prompter.tokenizer, torch.float32)
        spec = ModelSpec(folder, recipe.dtype, recipe.device, recipe.trust_remote_code)
        return solved(recipe, asked, spec, prompter).summary()
