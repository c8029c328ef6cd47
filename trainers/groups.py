"""Sums over the completions of each group, which the group-relative advantages share."""

from __future__ import annotations

import torch
from torch import Tensor


def group_sum(values: Tensor, group: Tensor) -> Tensor:
    """(B,) each completion's group total of `values` (B,), for group ids (B,)."""
    _, index = group.unique(return_inverse=True)
    totals = torch.zeros(int(index.max()) + 1 if len(index) else 0, dtype=values.dtype).index_add_(0, index, values)
    return totals[index]


def group_size(group: Tensor) -> Tensor:
    return group_sum(torch.ones(len(group), dtype=torch.float64), group)


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    return group_sum(values, group) / group_size(group)


def group_std(values: Tensor, group: Tensor) -> Tensor:
    """(B,) the unbiased standard deviation within each completion's group; 0 in a group of one."""
    centred = values - group_mean(values, group)
    return (group_sum(centred**2, group) / (group_size(group) - 1).clamp(min=1)).sqrt()


def uniform(values: Tensor, group: Tensor) -> Tensor:
    """(B,) bool: every member of the completion's group has the same value."""
    same = torch.ones(len(values), dtype=torch.bool)
    for name in group.unique().tolist():
        members = group == name
        same[members] = bool((values[members] == values[members][0]).all())
    return same
