"""Top-H (`rollout.top_h`) in vLLM: sets what a request's distribution leaves out to −inf. α and the rule are given in its
sampling parameters, `SamplingParams.extra_args["top_h"]`.

A logits processor of this kind runs before vLLM's temperature and its truncations: the first of them, as in `rollout.sampling`.
The temperature is taken into account here. Log-probs of kind `processed` are of what all of them leave.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor

from rlcore.types import Sampling
from rollout.sampling import SamplingRows, truncate

TOP_H = "top_h"


class TopHProcessor(LogitsProcessor):
    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.device = device
        self.asked: dict[int, Sampling] = {}  # by the row of the batch

    def is_argmax_invariant(self) -> bool:
        return False  # it is, but those that say so run after min-p

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.asked, batch_update, lambda params, *_: sampling_of(params))

    def apply(self, logits: Tensor) -> Tensor:
        if self.asked:
            rows = SamplingRows.of(list(self.asked.values()), logits.shape[-1], self.device)
            where = list(self.asked)
            kept = truncate(logits[where].float() / rows.temperature[:, None], rows) > -torch.inf
            logits[where] = logits[where].masked_fill(~kept, -torch.inf)
        return logits


def sampling_of(params: SamplingParams) -> Sampling | None:
    """None for what is not truncated by it, or greedy."""
    given = (params.extra_args or {}).get(TOP_H)
    if given is None or params.temperature == 0:
        return None
    alpha, normalized = given
    return Sampling(temperature=params.temperature, top_h=alpha, top_h_normalized=normalized)
