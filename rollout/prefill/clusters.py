"""Heads that attend alike, found beforehand: whose pattern one may stand for the others'.

    Ā_h = averages over blocks of the attention of head h (`estimate.block_averages`), mean over the prompts
    f_h = √Ā_h, at most SIDE × SIDE, divided by √(2 rows)      so that ‖f_h − f_g‖ is a root mean square of Hellinger distances
    f   → principal components → agglomerative clustering, average linkage, cut at a distance

SharePrefill (arXiv 2505.19578) clusters codes of an auto-encoder of such maps in their place. Clusters of fewer than `least`
heads are noise, and not shared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from transformers import PretrainedConfig

from rlcore.errors import UserError
from rlcore.run.folder import write_aside

FILE = "clusters.json"  # of a run folder
SIDE, COMPONENTS = 64, 64


@dataclass(frozen=True)
class Clusters:
    """Every head of a model once, as (layer, head), both from 0 on."""

    layers: int
    heads: int
    clusters: dict[str, list[tuple[int, int]]]
    shared_clusters: list[str]
    seconds: float  # that finding them took

    def shared(self) -> dict[tuple[int, int], str]:
        """The cluster of each head that is in a shared one."""
        return {(layer, head): name for name in self.shared_clusters for layer, head in self.clusters[name]}

    def refuse_other(self, config: PretrainedConfig) -> None:
        """Raises UserError for a model that has not these heads."""
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        if (layers, heads) != (self.layers, self.heads):
            raise UserError(
                f"the clusters are of a model of {self.layers} layers with {self.heads} heads, and this one has {layers} with "
                f"{heads}: make them for it, with rlcore decode cluster"
            )

    def write(self, folder: Path) -> None:
        write_aside(folder / FILE, json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, place: str) -> Clusters:
        """A run folder, or a file. Raises UserError for what holds no clusters."""
        path = Path(place, FILE) if Path(place).is_dir() else Path(place)
        if not path.is_file():
            raise UserError(f"there are no clusters in {place}: make them with rlcore decode cluster")
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise UserError(f"{path} holds no clusters of heads: {error}") from error


def features(averages: Tensor) -> Tensor:
    """(layers · heads, blocks, blocks), rows that add up to 1 → (layers · heads, width)."""
    side = min(SIDE, averages.shape[-1])
    return adaptive_avg_pool2d(averages.sqrt(), side).flatten(1) / (2 * side) ** 0.5


def cluster(features: Tensor, distance: float) -> list[list[int]]:
    """Rows of (n, width) that belong together, the largest cluster first."""
    centred = (features - features.mean(0)).double()
    left, scale, _ = torch.linalg.svd(centred, full_matrices=False)
    components = (left * scale)[:, :COMPONENTS]
    labels = fcluster(linkage(components.numpy(), method="average"), distance, criterion="distance")
    found: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        found.setdefault(label, []).append(row)
    return sorted(found.values(), key=len, reverse=True)


def named(found: Sequence[Sequence[int]], layers: int, heads: int, least: int, seconds: float) -> Clusters:
    """Of rows that are layer · heads + head."""
    clusters = {str(i): [divmod(row, heads) for row in rows] for i, rows in enumerate(found)}
    return Clusters(layers, heads, clusters, [name for name, members in clusters.items() if len(members) >= least], seconds)
