"""The tensor types of a training step: GradedBatch → Advantages → TrainingBatch, each complete when made.

Axes: B completions, T positions of the longest completion (right-padded). Prompts stay outside the rectangle, as ids, so
that position t means the same thing in every field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from rlcore.types import Completion, Sampling


@dataclass(frozen=True)
class GradedBatch:
    """The valid completions of a step with their rewards."""

    # what was sampled
    prompt_ids: Sequence[tuple[int, ...]]  # B prompts
    tokens: Tensor  # (B, T) long; 0 where padded
    present: Tensor  # (B, T) float; 1 where there is a token
    loss_mask: Tensor  # (B, T) float; 1 where the policy sampled the token
    rollout_logprobs: Tensor  # (B, T) under the distribution actually sampled
    versions: Tensor  # (B, T) long; the weights that sampled the token
    truncated: Tensor  # (B,) bool; cut by the token limit
    sampling: Sampling
    # what it is worth
    group: Tensor  # (B,) long; equal for the completions of one problem
    rewards: dict[str, Tensor]  # component → (B, T), weighted and gated
    accuracy: Tensor | None  # (B,) the raw verifiable component, 0 or 1; None where nothing is verified
    process: tuple[str, ...] = ()  # those of `rewards` that pay steps; the others pay completions
    # what some advantages ask for (`trainers.algorithm.needs`)
    greedy: Tensor | None = None  # (B,) what the greedy completion of the same problem is worth in all
    path: Tensor | None = None  # (B, D) long; the node of its tree that a completion passes at each depth; -1 after its end
    cut: Tensor | None = None  # (B, 3) long; the `rlcore.types.Cut` of its thought
    values: Tensor | None = None  # (B, T) the critic's prediction of what is still earned from this token on

    def __post_init__(self) -> None:
        shape = self.tokens.shape
        for name in ("present", "loss_mask", "rollout_logprobs", "versions"):
            if getattr(self, name).shape != shape:
                raise ValueError(f"GradedBatch.{name} has shape {tuple(getattr(self, name).shape)}, not {tuple(shape)}")
        if self.values is not None and self.values.shape != shape:
            raise ValueError(f"GradedBatch.values has shape {tuple(self.values.shape)}, not {tuple(shape)}")
        if self.cut is not None and self.cut.shape != (shape[0], 3):
            raise ValueError(f"GradedBatch.cut has shape {tuple(self.cut.shape)}, not {(shape[0], 3)}")
        for name in ("prompt_ids", "truncated", "group", "accuracy", "greedy"):
            value = getattr(self, name)
            if value is not None and (len(value) != shape[0] or getattr(value, "ndim", 1) != 1):
                raise ValueError(f"GradedBatch.{name} does not have one entry for each of {shape[0]} completions")
        for name, reward in self.rewards.items():
            if reward.shape != shape:
                raise ValueError(f"reward {name!r} has shape {tuple(reward.shape)}, not {tuple(shape)}")

    @property
    def lengths(self) -> Tensor:
        """(B,) number of completion tokens."""
        return self.present.sum(1)

    @property
    def per_token(self) -> Tensor:
        """(B, T) what each token earns, over all components."""
        return torch.stack(list(self.rewards.values())).sum(0)

    @property
    def totals(self) -> Tensor:
        """(B,) each completion's summed reward over all components and tokens."""
        return self.per_token.sum(1)


@dataclass(frozen=True)
class Advantages:
    policy: Tensor  # (B, T) what each token's log-prob is pushed by
    degenerate: Tensor  # (B,) bool; the rewards that the completion was compared with were all alike
    returns: Tensor | None = None  # (B, T) what the critic is to predict, where there is one


@dataclass(frozen=True)
class TrainingBatch:
    """What the learner sees: the graded batch, its advantages and, where a KL term asks for it, the reference's log-probs."""

    graded: GradedBatch
    advantages: Tensor  # (B, T)
    reference_logprobs: Tensor | None  # (B, T)
    returns: Tensor | None = None  # (B, T) what the critic learns to predict


def batch_from(completions: Sequence[Completion], sampling: Sampling, *, group: Sequence[int], **worth: Any) -> GradedBatch:
    """These completions, with what they are worth: `rewards`, `accuracy`, …"""
    return GradedBatch(
        prompt_ids=[c.prompt_ids for c in completions],
        tokens=pad([c.token_ids for c in completions], torch.long),
        present=pad([(1,) * len(c.token_ids) for c in completions], torch.float32),
        loss_mask=pad([c.loss_mask for c in completions], torch.float32),
        rollout_logprobs=pad([c.logprobs for c in completions], torch.float32),
        versions=pad([c.versions for c in completions], torch.long),
        truncated=torch.tensor([c.truncated for c in completions], dtype=torch.bool),
        sampling=sampling,
        group=torch.tensor(group, dtype=torch.long),
        path=pad([c.path for c in completions], torch.long, -1) if any(c.path for c in completions) else None,
        cut=torch.tensor([c.cut for c in completions]) if any(c.cut for c in completions) else None,
        **worth,
    )


def rows(batch: GradedBatch, index: Sequence[int]) -> GradedBatch:
    """The batch restricted to some completions, in the order of `index`; T is kept."""
    which = torch.as_tensor(index, dtype=torch.long)
    picked: dict[str, object] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if field.name in ("sampling", "process") or value is None:
            picked[field.name] = value
        elif isinstance(value, Tensor):
            picked[field.name] = value[which]
        elif field.name == "rewards":
            picked[field.name] = {name: reward[which] for name, reward in value.items()}
        elif field.name == "prompt_ids":
            picked[field.name] = [value[i] for i in index]
        else:
            raise TypeError(f"rows() does not know how to cut GradedBatch.{field.name}")
    return GradedBatch(**picked)  # type: ignore[arg-type]


def cut_by_length(lengths: Mapping[int, int], budget: int) -> Iterator[list[int]]:
    """The keys in order of length, cut so that no part is wider × longer than `budget` (one key at least), and none has a key
    more than twice as long as another: so less than half of it is padding, for log2(longest / shortest) more parts at most.
    With a large budget the short would otherwise be padded to what the long need, which costs more than a pass."""
    part: list[int] = []
    for i in sorted(lengths, key=lambda i: (lengths[i], i)):
        if part and (lengths[i] * (len(part) + 1) > budget or lengths[i] > 2 * lengths[part[0]]):
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def pad(rows_: Sequence[Sequence[float]], dtype: torch.dtype, filling: float = 0) -> Tensor:
    """(B, T) from rows of different lengths, right-padded with `filling`."""
    width = max((len(row) for row in rows_), default=0)
    return torch.tensor([[*row, *[filling] * (width - len(row))] for row in rows_], dtype=dtype).view(len(rows_), width)
