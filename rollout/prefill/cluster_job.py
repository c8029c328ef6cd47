"""`job: cluster_heads`: which heads of a model attend alike, from what they do on a few prompts."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from compress.calibration import packed
from rlcore.data.mixture import load as load_problems
from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.recipe.schema import ClusterHeads
from rlcore.run.console import watched
from rlcore.run.folder import Run
from rollout.prefill.attention import prefill
from rollout.prefill.clusters import Clusters, cluster, features, named
from rollout.prefill.estimate import block_averages
from rollout.prefill.patterns.dense import Dense
from rollout.prefill.texts import fillers


def plan(recipe: ClusterHeads, tokenizer: PreTrainedTokenizerBase, context: int) -> Tensor:
    """(prompts, length) of tokens. Raises UserError where the data has fewer, and for prompts beyond the model's context."""
    if recipe.length > context:
        raise UserError(f"length {recipe.length} is more than the model's context of {context}: ask for shorter prompts")
    return packed(fillers(load_problems(recipe.data), tokenizer, recipe.seed), recipe.prompts, recipe.length)


def find(recipe: ClusterHeads, prompts: Tensor, run: Run, spec: ModelSpec) -> tuple[Clusters, dict[str, Any]]:
    """The clusters, and what the run's summary says of them."""
    model = spec.load().eval()
    began = time.perf_counter()
    watching = Watching(block=recipe.block)
    with watched("prompts", len(prompts)) as progress:
        for number, ids in enumerate(prompts, 1):
            read = prefill(model, ids[None].to(model.device), watching)
            run.log(number, {"time/prefill": read.seconds})
            progress(1)
    found = cluster(features(watching.averages()), recipe.distance)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    clusters = named(found, layers, heads, recipe.least, time.perf_counter() - began)
    return clusters, {
        "heads": layers * heads,
        "clusters": len(found),
        "shared_clusters": len(clusters.shared_clusters),
        "shared_heads": len(clusters.shared()),
        "largest": len(found[0]),
        "cluster_s": clusters.seconds,
    }


class Watching(Dense):
    """Reads everything, and keeps what each head made of it, averaged over blocks, the sum over prompts."""

    def __init__(self, *, block: int) -> None:
        super().__init__(block=block)
        self._seen: dict[int, Tensor] = {}

    def _choose(self, layer: int, query: Tensor, key: Tensor) -> Tensor:
        averages = block_averages(query, key, self.block).cpu()
        self._seen[layer] = self._seen.get(layer, 0) + averages
        return super()._choose(layer, query, key)

    def averages(self) -> Tensor:
        """(layers · heads, blocks, blocks), of all prompts; rows add up to 1."""
        found = torch.cat([self._seen[layer] for layer in sorted(self._seen)])
        return found / found.sum(-1, keepdim=True)
