"""Hidden transfer (Wu et al. 2024, arXiv 2404.12022): the further ahead a pseudo state is, the higher the layer after which it
comes in, where those below it, which it attends to, have been worked on. See `rollout.decoding.heads.Carried`."""

from __future__ import annotations

from pydantic import PositiveInt
from transformers import PretrainedConfig

from rollout.decoding.heads import Carried, usual_layer


class HiddenTransfer(Carried):
    """`layer`: the one after which the first comes in; three quarters of the model's, or as high as all `steps` have room,
    unless given. The others follow layer by layer, up to the last but one."""

    def __init__(self, config: PretrainedConfig, *, steps: PositiveInt = 3, layer: PositiveInt | None = None) -> None:
        last = config.num_hidden_layers - 1
        first = layer or max(min(usual_layer(config), last - steps + 1), min(1, last))
        super().__init__(config, [first, *(min(first + i, last) for i in range(1, steps))])
