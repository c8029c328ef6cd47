"""Latent codes in vLLM: adds W·z to the logits of each request, of which z is given in its sampling parameters.

    logits_t = W h_t + W z        W z = Σ_k w_k (W e_k)        w: `SamplingParams.extra_args["code_weights"]`, K numbers

A logits processor runs before the temperature, and log-probs of kind `processed` are of what it leaves. Speculative decoding
would verify a draft by logits without z.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor

from rlcore.errors import UserError
from rlcore.latent import load_latent
from rollout.latent import CODE_WEIGHTS, language_head


class LatentProcessor(LogitsProcessor):
    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        if vllm_config.speculative_config is not None:
            raise UserError("a model with latent codes cannot be decoded speculatively: leave the drafter out")
        folder = vllm_config.model_config.model
        latent = load_latent(folder)
        if latent is None:
            raise UserError(f"{folder} has no latent codes to serve")
        self.logits = latent.logits(language_head(folder)).to(device)
        self.asked: dict[int, tuple[float, ...]] = {}  # by the row of the batch

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.asked, batch_update, lambda params, *_: weights_of(params))

    def apply(self, logits: Tensor) -> Tensor:
        if self.asked:
            weights = torch.tensor(list(self.asked.values()), device=logits.device)
            logits[list(self.asked)] += (weights @ self.logits).to(logits.dtype)
        return logits


def weights_of(params: SamplingParams) -> tuple[float, ...] | None:
    """None for what asks for prompts' log-probs, say: without a code."""
    given = (params.extra_args or {}).get(CODE_WEIGHTS)
    return None if given is None else tuple(given)
