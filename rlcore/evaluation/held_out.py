"""What a model that `job: sft` trained makes of held-out problems and their solutions, and what a token of them costs it.

held_out_loss   mean negative log-prob of a token of the solutions, nats
perplexity      of a token of problems and solutions
parameters      of the whole model

and, counted (`compress.counting`), for a Llama or a Mixture-of-Modules, this by how the texts were routed:

flops           forward, of a token; its context is that of a token of the texts on average
cache_bytes     of keys and values that anyone reads, for each token, in the recipe's dtype
layers          how many layers' worth of modules a token is given
depth           layers and rounds, one after the other
skipped         share of the choices that are SKIP

How a mixture routed them, by block and round, is kept as routing.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedModel

from compress import counting
from compress.measure import Text, measure, routed
from rlcore.models import ModelSpec
from rlcore.recipe.schema import Sft
from rlcore.run.console import watched

ROUTING = "routing.json"


def measured(recipe: Sft, held_out: Sequence[Text], folder: Path) -> dict[str, Any]:
    """Of the model that was trained in the run's folder; nothing for no texts."""
    if not held_out:
        return {}
    model = ModelSpec(str(folder / "model"), "float32", recipe.device, recipe.trust_remote_code).load().eval()
    with watched("predicting held-out solutions", len(held_out)) as progress:
        found = measure(model, held_out, progress=progress)
    predicted = {"held_out_loss": -found["solution"], "perplexity": found["perplexity"], "parameters": model.num_parameters()}
    if not isinstance(model.config, LlamaConfig):
        return predicted
    return predicted | _counted(model, held_out, getattr(torch, recipe.dtype), folder)


def _counted(model: PreTrainedModel, held_out: Sequence[Text], dtype: torch.dtype, folder: Path) -> dict[str, float]:
    config, usage = model.config, None
    if config.model_type == "mixture_of_modules":
        usage = routed(model, held_out)
        kept = {name: tensor.tolist() for name, tensor in asdict(usage).items()}
        (folder / ROUTING).write_text(json.dumps(kept) + "\n", encoding="utf-8")
    lengths = [len(text.ids) for text in held_out]
    context = sum(n * (n + 1) / 2 for n in lengths) / sum(lengths)
    return {
        "flops": counting.flops(config, context, usage),
        "cache_bytes": counting.cache_bytes(config, dtype, usage),
        "layers": counting.layers(config, usage),
        "depth": config.num_hidden_layers,
        "skipped": usage.skipped if usage else 0.0,
    }
