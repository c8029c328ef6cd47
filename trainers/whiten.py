"""Whitening over the tokens of a batch, which several advantages end with."""

from __future__ import annotations

import torch
from torch import Tensor


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """(B, T) (x − mean) / √(var + 1e-8), mean and unbiased var over the tokens where `mask` is 1; 0 at the others, which are
    not read. Tokens count alike, so long completions rule both. Equal values, or a single one, give 0."""
    inside = mask.bool()
    tokens = values[inside].double()
    centred = tokens - tokens.mean()
    variance = (centred**2).sum() / max(len(tokens) - 1, 1)
    result = torch.zeros(values.shape)
    result[inside] = (centred / (variance + 1e-8).sqrt()).float()
    return result
