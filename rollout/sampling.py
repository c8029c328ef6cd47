"""Drawing one token per row from logits: one fused pass, one random number per row and position.

A row's token is the inverse of its cumulative distribution at a uniform number u, and u depends only on the request's seed
and the position, so that a completion does not depend on what it was batched with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rlcore.types import Sampling
from rollout import top_h


@dataclass(frozen=True)
class SamplingRows:
    """The sampling parameters of R rows as tensors, made once when the rows enter the batch."""

    temperature: Tensor  # (R,)
    top_h: Tensor  # (R,)
    top_h_normalized: Tensor  # (R,) bool
    top_p: Tensor  # (R,)
    top_k: Tensor  # (R,) long; vocabulary size where off
    min_p: Tensor  # (R,)
    greedy: Tensor  # (R,) bool
    truncates: bool  # any row does
    bounds_entropy: bool  # any row does, by top-h

    @classmethod
    def of(cls, samplings: Sequence[Sampling], vocabulary: int, device: torch.device) -> SamplingRows:
        def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return cls(
            temperature=column([s.temperature or 1.0 for s in samplings]),
            top_h=column([s.top_h for s in samplings]),
            top_h_normalized=column([s.top_h_normalized for s in samplings], torch.bool),
            top_p=column([s.top_p for s in samplings]),
            top_k=column([min(s.top_k, vocabulary) or vocabulary for s in samplings], torch.long),
            min_p=column([s.min_p for s in samplings]),
            greedy=column([s.temperature == 0 for s in samplings], torch.bool),
            truncates=any(s.truncates for s in samplings),
            bounds_entropy=any(s.top_h < 1 for s in samplings),
        )

    def rows(self, index: slice | Tensor) -> SamplingRows:
        return replace(self, **{name: value[index] for name, value in vars(self).items() if isinstance(value, Tensor)})

    def move(self, source: int, target: int) -> None:
        for value in vars(self).values():
            if isinstance(value, Tensor):
                value[target] = value[source]


def uniforms(seed: int, count: int) -> np.ndarray:
    """The random numbers of a request, one per position: (count,) float32 in [0, 1). Philox gives the same ones everywhere."""
    numbers = np.random.Generator(np.random.Philox(key=seed)).random(count, dtype=np.float32)
    return np.minimum(numbers, np.float32(1 - 2**-22))  # so that u · total cannot round up to total


def sample(logits: Tensor, rows: SamplingRows, u: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (R,) and their log-probs (R,) under the distribution sampled from, for logits (R, V) and uniforms (R,)."""
    return draw(processed(logits, rows), rows, u)


def processed(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Logits (R, V) → those whose softmax is sampled from, float32: divided by the temperature (greedy rows: as they are), −inf
    where truncated."""
    scaled = logits.float() / rows.temperature[:, None]
    return truncate(scaled, rows) if rows.truncates else scaled


def draw(scaled: Tensor, rows: SamplingRows, u: Tensor) -> tuple[Tensor, Tensor]:
    """`sample`, from logits that are processed."""
    logprobs = scaled.log_softmax(-1)
    tokens = torch.where(rows.greedy, scaled.argmax(-1), inverse_cdf(logprobs.exp(), u))
    chosen = logprobs.gather(1, tokens[:, None])[:, 0]
    return tokens, torch.where(rows.greedy, 0.0, chosen)


def inverse_cdf(p: Tensor, u: Tensor) -> Tensor:
    """Tokens (R,): the first whose cumulative share of p (R, V), which need not sum to one, is above u (R,)."""
    cumulative = p.cumsum(-1, dtype=torch.float64)  # float32 sums on CUDA are not monotone
    return torch.searchsorted(cumulative, (u * cumulative[:, -1])[:, None], right=True)[:, 0]


def truncate(scaled: Tensor, rows: SamplingRows) -> Tensor:
    """Set everything outside top-h, then top-k, then top-p, then min-p to −inf; the most likely token always stays."""
    ordered, order = scaled.sort(-1, descending=True)
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    if rows.bounds_entropy:
        count = top_h.kept(ordered.softmax(-1), rows.top_h, rows.top_h_normalized)
        ordered = ordered.masked_fill(rank >= count[:, None], -torch.inf)
    ordered = ordered.masked_fill(rank >= rows.top_k[:, None], -torch.inf)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # mass of the more likely tokens
    outside = (before >= rows.top_p[:, None]) & (rank > 0)
    ordered = ordered.masked_fill(outside, -torch.inf)
    ordered = ordered.masked_fill(ordered < ordered[:, :1] + rows.min_p.log()[:, None], -torch.inf)
    return torch.empty_like(scaled).scatter_(1, order, ordered)
