"""How new weights reach an engine, and the proof that they arrived: push, then probe.

`stage` is the engine's half (nothing is used before everything has arrived); `push` is the trainer's half.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from rlcore.batch import GradedBatch, rows
from rlcore.errors import UserError
from rlcore.protocols import Engine, Learner, WeightUpdate
from rlcore.types import Sampling

# The mean absolute difference between the engine's and the learner's log-probs of a token, by the dtype of the forward
# passes. Honest syncs were measured at 7e-6 in float32 and 0.02 to 0.04 in bfloat16 (SmolLM2-135M on a CPU). In bfloat16 a
# step of training moves less than that: that the weights are in use is proved by their checksums, that they mean the same
# to both sides by this.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
PROBE_TOKENS = 64  # each is computed twice, by the learner and by the engine
PIECE = 1 << 20  # elements that a checksum takes at a time
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weight_update(version: int, tensors: Mapping[str, Tensor], kind: Literal["full", "adapter"] = "full") -> WeightUpdate:
    """The update that carries these tensors, in one bucket, with their checksums."""
    return WeightUpdate(version, [tensors], {name: checksum(tensor) for name, tensor in tensors.items()}, kind)


def checksum(tensor: Tensor) -> int:
    """A 63-bit sum of the tensor's words (its bit patterns as integers), each times an odd number of its position, modulo 2³²:
    any flipped bit or lost element changes it, and an exchange of elements but for a chance of some 2⁻¹⁵. Runs on the tensor's
    device, in pieces that bound the memory."""
    words = tensor.detach().contiguous().view(-1).view(_WORDS[tensor.element_size()])
    pieces = [(piece * _multipliers(piece.device)[: len(piece)]).sum(dtype=torch.int64) for piece in words.split(PIECE)]
    total = 0
    for value in torch.stack(pieces).tolist():
        total = total * 6364136223846793005 + value
    return total & ((1 << 63) - 1)


@functools.cache
def _multipliers(device: torch.device) -> Tensor:
    return ((torch.arange(PIECE, device=device) * 2654435761 % 2147483647) | 1).int()


class SyncError(UserError):
    """Weights did not reach the engine as they should. Says which tensor, and how it differs."""


def stage(update: WeightUpdate, served: Mapping[str, Tensor], current: int) -> dict[str, Tensor]:
    """Receive every bucket and check it against what is served now; the caller copies the result in only if this returns.

    `served` are the plain checkpoint's tensors. Raises SyncError for a stale version, and for a tensor that is unknown,
    missing, misshapen or corrupted.
    """
    if update.version < current:
        raise SyncError(f"weight update {update.version} is stale: version {current} is served already")
    arrived: dict[str, Tensor] = {}
    for bucket in update.buckets:
        for name, tensor in bucket.items():
            target = _target(name) if update.kind == "adapter" else name
            if target not in served:
                raise SyncError(f"weight update {update.version} brings {name!r}, which the engine's model does not have")
            if not _fits(name, tensor, served[target]):
                raise SyncError(f"{name!r} arrived with shape {tuple(tensor.shape)}, not {tuple(served[target].shape)}")
            if update.checksums.get(name) != checksum(tensor):
                raise SyncError(f"{name!r} arrived corrupted in weight update {update.version}: its checksum differs")
            arrived[name] = tensor
    expected = served if update.kind == "full" else update.checksums
    if missing := [name for name in expected if name not in arrived]:
        raise SyncError(f"weight update {update.version} is partial: {len(missing)} tensors never came, first {missing[0]!r}")
    return arrived


def adapted(adapter: Mapping[str, Tensor]) -> list[str]:
    """The names of the weights that an adapter update changes."""
    return list(dict.fromkeys(map(_target, adapter)))


def _target(name: str) -> str:
    """The weight that an adapter tensor belongs to: `q_proj.weight` for `q_proj.lora_A.weight`."""
    return name.replace(".lora_A.", ".").replace(".lora_B.", ".")


def _fits(name: str, tensor: Tensor, served: Tensor) -> bool:
    if ".lora_A." in name:
        return tensor.shape[1] == served.shape[1]
    if ".lora_B." in name:
        return tensor.shape[0] == served.shape[0]
    return tensor.shape == served.shape


def push(learner: Learner, engine: Engine, version: int, witnesses: GradedBatch | None, dtype: str) -> float:
    """Sync the engine to the learner, compare what it serves with what was sent, and probe parity on a few completions;
    returns the mean log-prob difference.

    Raises SyncError where a tensor differs or the mean is above TOLERANCE. With `witnesses` None (nothing sampled yet) there is
    no probe, and the mean is 0.
    """
    update = learner.weights(version)
    engine.sync(update)
    if engine.version != version:
        raise SyncError(f"the engine serves version {engine.version} after a sync to version {version}")
    served = engine.checksums()
    if update.kind == "full" and (other := [name for name, value in served.items() if update.checksums[name] != value]):
        raise SyncError(f"after the sync to version {version} the engine still serves another {other[0]!r} than was sent")
    if witnesses is None or not len(witnesses.tokens):
        return 0.0
    enough = int((witnesses.lengths.cumsum(0) < PROBE_TOKENS).sum()) + 1
    chosen = replace(rows(witnesses, range(min(enough, len(witnesses.tokens)))), sampling=Sampling())
    ours, lengths = learner.logprobs(chosen).cpu(), chosen.lengths.long().tolist()
    sequences = [(prompt, row[:n].tolist()) for prompt, row, n in zip(chosen.prompt_ids, chosen.tokens, lengths, strict=True)]
    theirs = torch.tensor([logprob for row in engine.logprobs(sequences) for logprob in row])
    difference = (theirs - ours[chosen.present.bool()]).abs().mean().item()
    if not difference <= TOLERANCE[dtype]:
        raise SyncError(
            f"after the sync to version {version} the engine's log-probs differ from the learner's by {difference:.3g} on "
            f"average ({TOLERANCE[dtype]} is tolerated in {dtype}): the weights served are not the weights trained"
        )
    return difference
