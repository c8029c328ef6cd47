"""FIRP, future intermediate representation prediction (Wu et al. 2024, arXiv 2410.20488): all pseudo states come in after one
layer, and take in richer semantics in those above. See `rollout.decoding.heads.Carried`."""

from __future__ import annotations

from pydantic import PositiveInt
from transformers import PretrainedConfig

from rollout.decoding.heads import Carried, usual_layer


class Firp(Carried):
    """`layer`: the one after which they come in; three quarters of the model's unless given."""

    def __init__(self, config: PretrainedConfig, *, steps: PositiveInt = 3, layer: PositiveInt | None = None) -> None:
        super().__init__(config, [layer or usual_layer(config)] * steps)
