"""What vLLM 0.32 does wrong where it samples with drafts, and what stands in for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

GREEDY = 1e-5  # the temperature below which vLLM takes the likeliest token


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
