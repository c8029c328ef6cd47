"""The draft model in a process of vLLM: what loads it, and what makes its guesses harmless. See `rollout.drafters.compressed`.

vLLM reloads its policy and its draft model one at a time, and each weight comes by only once: so the draft model's reload is
driven from here, beside the policy's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from compress.codec import Codec

GREEDY = 1e-5  # the temperature below which vLLM takes the likeliest token


class DraftModel:
    """Of a vLLM `worker`; compressed by `codec`, and decoded to `dtype`. `seconds` is what the last reload took."""

    def __init__(self, worker: Any, codec: Codec, dtype: torch.dtype) -> None:
        self.worker, self.codec, self.dtype = worker, codec, dtype
        self.model = worker.get_draft_model()
        self.seconds = 0.0

    def begin(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self.seconds = 0.0
        with self._at_work():
            initialize_layerwise_reload(self.model)

    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Some of the policy's weights, by the names of the plain checkpoint."""
        with self._at_work():
            self.model.load_weights((name, self._compressed(name, tensor)) for name, tensor in tensors)

    def end(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        with self._at_work():
            finalize_layerwise_reload(self.model, self.worker.vllm_config.speculative_config.draft_model_config)

    @torch.no_grad()
    def _compressed(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.codec.names:
            return tensor
        return self.codec.encode(name, tensor.to(self.worker.device)).decode().to(self.dtype)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        from vllm.config import set_current_vllm_config

        since = time.perf_counter()
        with set_current_vllm_config(self.worker.vllm_config):
            yield
        self.seconds += time.perf_counter() - since


# -- what vLLM 0.32 does wrong for us --------------------------------------------------------------------------------------


def mend_sampling(device: torch.device) -> None:
    """For the rest of this process; engines that do not speculate go another way. Drafts of vLLM's first model runner (that of
    CPUs) take the random numbers of the process: they are given the request's own, since its seed is to decide its tokens. And
    on a CPU vLLM verifies them at a temperature, top-k and top-p that nobody wrote: its kernel spreads them over the drafts in
    an integer copy of the result, and drops it. Top-k, for its part, fails in a pass that has no drafts to verify."""
    from vllm.v1.sample import rejection_sampler
    from vllm.v1.spec_decode import llm_base_proposer

    llm_base_proposer.compute_probs_and_sample_next_token = drawn_by_seed
    if device.type == "cpu":
        rejection_sampler.expand_batch_to_tokens = spread
        rejection_sampler.apply_top_k_top_p = truncated


def drawn_by_seed(logits: Tensor, sampling_metadata: Any, use_fp64_gumbel: bool = False) -> tuple[Tensor, Tensor]:
    """(B,) a draft for each request and the (B, V) distribution that it is from; stands in for vLLM's
    `compute_probs_and_sample_next_token`."""
    greedy = sampling_metadata.temperature < GREEDY
    temperature = torch.where(greedy, 1.0, sampling_metadata.temperature)
    probabilities = (logits / temperature[:, None]).softmax(-1, dtype=torch.float32)
    noise = torch.empty_like(probabilities).exponential_()
    for row, generator in sampling_metadata.generators.items():
        noise[row].exponential_(generator=generator)
    drawn = (probabilities / noise).argmax(-1)
    return torch.where(greedy, probabilities.argmax(-1), drawn), probabilities


def spread(x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0) -> Tensor:
    """(num_tokens,) each request's entry of x (B,) once for each of its drafts, of which `cu_num_tokens` (B,) is the cumulative
    count; stands in for vLLM's `expand_batch_to_tokens`."""
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    return torch.where(x == replace_from, replace_to, x).repeat_interleave(counts, output_size=num_tokens)


def truncated(logits: Tensor, k: Tensor | None, p: Tensor | None) -> Tensor:
    """(drafts, V); stands in for vLLM's `apply_top_k_top_p`, which knows of no 0 drafts."""
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    kept: Tensor = apply_top_k_top_p(logits, k, p) if len(logits) else logits
    return kept
