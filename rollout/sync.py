"""How new weights reach an engine, and the proof that they arrived: push, then probe.

`weight_update` and `codes_update` cut a learner's tensors into buckets; `Intake` is the engine's half of a sync; `push` is the
trainer's half.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from compress.held import Held
from rlcore.batch import GradedBatch, rows
from rlcore.errors import UserError
from rlcore.protocols import Bucket, Engine, Kind, Learner, Manifest, WeightUpdate
from rlcore.types import Sampling
from rollout.codes import Settings, decoded, shape_of, stored, weight_of

# The mean absolute difference between the engine's and the learner's log-probs of a token, by the dtype of the forward
# passes. Honest syncs were measured at 7e-6 in float32 and 0.02 to 0.04 in bfloat16 (SmolLM2-135M on a CPU). In bfloat16 a
# step of training moves less than that: that the weights are in use is proved by their checksums, that they mean the same
# to both sides by this.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
PROBE_TOKENS = 64  # each is computed twice, by the learner and by the engine
PIECE = 1 << 20  # elements that a checksum takes at a time
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
BUCKET_BYTES = 64 << 20
PAIR = {"places": "values", "values": "places"}  # how the names of a sparse update's tensors end, and of those beside them

Shapes = Mapping[str, tuple[int, ...]]


def weight_update(
    version: int,
    shapes: Shapes,
    tensors: Callable[[], Iterable[tuple[str, Tensor]]],
    kind: Kind = "full",
    bucket_bytes: int = BUCKET_BYTES,
    dtype: torch.dtype = torch.float32,
) -> WeightUpdate:
    """The update that brings what `tensors` yields, all of `dtype` but places, in that order, in buckets of about so many
    bytes (one tensor at least).

    `tensors` is called anew, and each tensor made, whenever the buckets are iterated over: memory holds the bucket that is
    being filled and the one that was handed out last.
    """
    width = dict.fromkeys([name for name in shapes if name.endswith(".places")], 4)  # int32
    nbytes = sum(math.prod(size) * width.get(name, dtype.itemsize) for name, size in shapes.items())
    return WeightUpdate(Manifest(version, shapes, kind, nbytes=nbytes), _Buckets(version, tensors, bucket_bytes))


def codes_update(
    version: int,
    held: Mapping[str, Held],
    others: Shapes,
    tensors: Callable[[], Iterable[tuple[str, Tensor]]],
    dtype: torch.dtype,
    bucket_bytes: int = BUCKET_BYTES,
) -> WeightUpdate:
    """The update that brings the compressed weights `held`, to be decoded to `dtype`, and then the `others`, which `tensors`
    yields. All tensors of a compressed weight are in one bucket."""
    settings = {name: weight.settings() for name, weight in held.items()}
    codes = {name: tensor for weight in held for name, tensor in stored(weight, held[weight])}
    shapes = {name: tuple(tensor.shape) for name, tensor in codes.items()} | dict(others)
    nbytes = sum(t.nbytes for t in codes.values()) + dtype.itemsize * sum(math.prod(size) for size in others.values())
    buckets = _Buckets(version, lambda: itertools.chain(codes.items(), tensors()), bucket_bytes, settings, dtype)
    return WeightUpdate(Manifest(version, shapes, "codes", settings, nbytes), buckets)


@dataclass(frozen=True)
class _Buckets:
    version: int
    tensors: Callable[[], Iterable[tuple[str, Tensor]]]
    bucket_bytes: int
    compressed: Settings = field(default_factory=dict)
    dtype: torch.dtype = torch.float32  # of the compressed weights, once decoded

    def __iter__(self) -> Iterator[Bucket]:
        index, size = 0, 0
        filling: dict[str, Tensor] = {}
        for _, weight in itertools.groupby(self.tensors(), lambda pair: weight_of(pair[0])):
            tensors = dict(weight)
            coming = sum(tensor.nbytes for tensor in tensors.values())
            if filling and size + coming > self.bucket_bytes:
                yield self._bucket(index, filling)
                index, filling, size = index + 1, {}, 0
            filling |= tensors
            size += coming
        if filling:
            yield self._bucket(index, filling)

    def _bucket(self, index: int, tensors: dict[str, Tensor]) -> Bucket:
        served = decoded(tensors, self.compressed, self.dtype)
        return Bucket(self.version, index, tensors, {name: checksum(tensor) for name, tensor in (tensors | served).items()})


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


class Reception:
    """Whether an engine is at a version or between two. A sync that failed leaves it torn, and `refuse_torn` says so, until one
    has ended well. Every method raises SyncError."""

    def __init__(self) -> None:
        self.version = 0
        self._manifest: Manifest | None = None  # of the update that is being received

    def begin(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def expected(self, bucket: Bucket) -> Manifest:
        """The update that the bucket would be part of."""
        if self._manifest is None:
            raise SyncError(f"bucket {bucket.index} of weight update {bucket.version} came when no update had begun")
        return self._manifest

    def end(self) -> Manifest:
        """The update is whole: its version is served from now on."""
        if self._manifest is None:
            raise SyncError("a weight update ended that had not begun")
        manifest, self._manifest = self._manifest, None
        self.version = manifest.version
        return manifest

    def refuse_torn(self) -> None:
        if self._manifest is not None:
            raise SyncError(f"weight update {self._manifest.version} did not arrive whole: there are no weights to work with")


class Intake(Reception):
    """What an engine with a model may receive next, and whether all of it has come.

    `served` are the shapes of the plain checkpoint's tensors. The SyncErrors name the tensor where they are about one.
    """

    def __init__(self, served: Shapes) -> None:
        super().__init__()
        self.served = served
        self._replaced = False  # the weights that the engine was made with, by a full update
        self._missing: dict[str, tuple[int, ...]] = {}
        self._next = 0  # the bucket that comes next

    def begin(self, manifest: Manifest) -> None:
        if manifest.version < self.version:
            raise SyncError(f"weight update {manifest.version} is stale: version {self.version} is served already")
        for name, shape in manifest.shapes.items():
            target = {"full": name, "codes": weight_of(name)}.get(manifest.kind, _target(name))
            if target not in self.served or (manifest.kind == "codes" and (target != name) != (target in manifest.compressed)):
                raise SyncError(f"weight update {manifest.version} brings {name!r}, which the engine's model does not have")
            if target in manifest.compressed:
                shape = self._decodes_to(manifest, target)
            if not _fits(name, shape, self.served[target]):
                raise SyncError(f"{name!r} comes with shape {tuple(shape)}, and {target!r} has {tuple(self.served[target])}")
        brought = set(map(weight_of, manifest.shapes))
        if manifest.kind in ("full", "codes") and (lacking := [name for name in self.served if name not in brought]):
            raise SyncError(f"weight update {manifest.version} is partial: it does not bring {lacking[0]!r}")
        if manifest.kind == "sparse":
            self._refuse_unfounded(manifest)
        super().begin(manifest)
        self._missing, self._next = dict(manifest.shapes), 0

    def check(self, bucket: Bucket) -> None:
        """Raise unless the bucket is the next one and each of its tensors is what was announced and sent."""
        update = self.expected(bucket)
        if (bucket.version, bucket.index) != (update.version, self._next):
            raise SyncError(
                f"bucket {bucket.index} of weight update {bucket.version} came in place of bucket {self._next} of "
                f"update {update.version}: its first tensor is {next(iter(bucket.tensors), '')!r}"
            )
        for name, tensor in bucket.tensors.items():
            if name not in self._missing:
                raise SyncError(f"{name!r} came twice, or unannounced, in weight update {bucket.version}")
            if tuple(tensor.shape) != tuple(self._missing[name]):
                raise SyncError(f"{name!r} arrived with shape {tuple(tensor.shape)}, not {tuple(self._missing[name])}")
            if not tensor.is_meta and bucket.checksums.get(name) != checksum(tensor):  # of those, the receiver compares it
                raise SyncError(f"{name!r} arrived corrupted in weight update {bucket.version}: its checksum differs")
            del self._missing[name]
        parts = {weight_of(name) for name in bucket.tensors}
        if torn := [name for name in self._missing if weight_of(name) in parts]:
            raise SyncError(f"{torn[0]!r} is not in one bucket of weight update {bucket.version} with the rest of its weight")
        self._next += 1

    def decode(self, bucket: Bucket, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """What a bucket that was checked has for the model, compressed weights decoded on `device`. Raises where one does not
        come out as at the sender's."""
        settings = self.expected(bucket).compressed
        if not settings:
            return dict(bucket.tensors)
        plain = decoded({name: tensor.to(device) for name, tensor in bucket.tensors.items()}, settings, dtype)
        if wrong := decoded_otherwise(plain, bucket):
            raise SyncError(f"{wrong[0]!r} was not decoded as at the sender's, in weight update {bucket.version}")
        return plain

    def _decodes_to(self, manifest: Manifest, weight: str) -> tuple[int, ...]:
        try:
            return shape_of(weight, manifest.compressed[weight], manifest.shapes)
        except UserError as error:
            raise SyncError(f"weight update {manifest.version}: {error}") from error

    def end(self) -> Manifest:
        if self._manifest is not None and self._missing:
            first = next(iter(self._missing))
            raise SyncError(
                f"weight update {self._manifest.version} is partial: {len(self._missing)} tensors never came, first {first!r}"
            )
        manifest = super().end()
        self._replaced = self._replaced or manifest.kind in ("full", "codes")
        return manifest

    def _refuse_unfounded(self, manifest: Manifest) -> None:
        if self._replaced:
            raise SyncError(
                f"sparse weight update {manifest.version} changes weights that the engine was made with, and a full update has "
                "replaced them: make a new engine"
            )
        for name, shape in manifest.shapes.items():
            weight, _, part = name.rpartition(".")
            if (other := PAIR.get(part)) and manifest.shapes.get(f"{weight}.{other}") != shape:
                raise SyncError(f"weight update {manifest.version} brings {name!r}, and no {other} of that shape beside it")


def decoded_otherwise(plain: Mapping[str, Tensor], bucket: Bucket) -> list[str]:
    """Of the tensors that a bucket was decoded to, the names of those that are not what the sender decoded them to."""
    made = {name: tensor for name, tensor in plain.items() if name not in bucket.tensors}
    return [name for name, tensor in made.items() if bucket.checksums.get(name) != checksum(tensor)]


def adapted(adapter: Mapping[str, Tensor]) -> list[str]:
    """The names of the weights that an adapter update changes."""
    return list(dict.fromkeys(map(_target, adapter)))


def patches(sparse: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor | slice, Tensor]]:
    """What the tensors of a sparse update say: weight, where in it, row by row, and what is to stand there."""
    for name, tensor in sparse.items():
        weight, _, part = name.rpartition(".")
        if part == "places":
            yield weight, tensor.long(), sparse[f"{weight}.values"]
        elif part not in PAIR:
            yield name, slice(None), tensor.view(-1)


def _target(name: str) -> str:
    """The weight that a tensor belongs to: `q_proj.weight` for `q_proj.lora_A.weight` and for `q_proj.weight.places`."""
    weight, _, part = name.rpartition(".")
    return weight if part in PAIR else name.replace(".lora_A.", ".").replace(".lora_B.", ".")


def _fits(name: str, shape: tuple[int, ...], served: tuple[int, ...]) -> bool:
    if ".lora_A." in name:
        return shape[1] == served[1]
    if ".lora_B." in name:
        return shape[0] == served[0]
    if name.rpartition(".")[2] in PAIR:
        return len(shape) == 1 and shape[0] <= math.prod(served)
    return tuple(shape) == tuple(served)


class Pushed(NamedTuple):
    parity: float  # mean absolute difference between the engine's log-probs and the learner's; 0 where there was no probe
    size: int  # bytes of the tensors that were sent, to each engine


def push(learner: Learner, engine: Engine, version: int, witnesses: GradedBatch | None, dtype: str) -> Pushed:
    """Sync the engine to the learner, compare what it serves with what was sent, and probe parity on a few completions.

    Raises SyncError where a tensor differs or the mean difference is above TOLERANCE. With `witnesses` None (nothing sampled
    yet) there is no probe.
    """
    update = learner.weights(version)
    sent = engine.sync(update)
    if engine.version != version:
        raise SyncError(f"the engine serves version {engine.version} after a sync to version {version}")
    served = engine.checksums()
    if other := [name for name, value in served.items() if sent.get(name, value) != value]:
        raise SyncError(f"after the sync to version {version} the engine still serves another {other[0]!r} than was sent")
    size = update.manifest.nbytes
    if witnesses is None or not len(witnesses.tokens):
        return Pushed(0.0, size)
    enough = int((witnesses.lengths.cumsum(0) < PROBE_TOKENS).sum()) + 1
    chosen = replace(rows(witnesses, range(min(enough, len(witnesses.tokens)))), sampling=Sampling())
    ours, lengths = learner.served_logprobs(chosen).cpu(), chosen.lengths.long().tolist()
    sequences = [(prompt, row[:n].tolist()) for prompt, row, n in zip(chosen.prompt_ids, chosen.tokens, lengths, strict=True)]
    theirs = torch.tensor([logprob for row in engine.logprobs(sequences) for logprob in row])
    difference = (theirs - ours[chosen.present.bool()]).abs().mean().item()
    if not difference <= TOLERANCE[dtype]:
        raise SyncError(
            f"after the sync to version {version} the engine's log-probs differ from the learner's by {difference:.3g} on "
            f"average ({TOLERANCE[dtype]} is tolerated in {dtype}): the weights served are not the weights trained"
        )
    return Pushed(difference, size)
