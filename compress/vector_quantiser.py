"""What `vq` and `mvq` have in common: matrices as runs of codewords, one codebook for each matrix or for each kind of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from compress.calibration import Calibration, Inputs, matrices, of_matrix, walk
from compress.compressed import CompressedModel
from compress.formats.codebook import Codebook
from compress.formats.sparse import Sparse
from compress.grouping import Axis, group
from compress.held import Held
from compress.kmeans import Clusters, kmeans
from compress.method import Method
from compress.packing import code_bits, pack
from rlcore.errors import UserError
from rlcore.protocols import Progress, no_progress


@dataclass(frozen=True)
class _Runs:
    """A matrix as it is clustered."""

    shape: tuple[int, int]
    rows: Tensor  # (runs, d), in units of the row's scale where there is one
    before: Sparse | None  # whose mask counts
    mask: Tensor | None  # (runs, d) bool
    importance: Tensor | None  # (runs, d)
    row_scales: Tensor | None  # (O,)


class VectorQuantiser(Method):
    """`codes` k, `width` d. `shared`: one codebook for all matrices of a kind (all q_proj, all down_proj, …), whose rows are
    scaled to a deviation of 1, instead of one for each. `weighted`: an entry counts by the mean square of its input."""

    masked: bool

    def __init__(
        self,
        *,
        codes: Annotated[int, Field(ge=2, le=65536)] = 256,
        width: PositiveInt = 8,
        axis: Axis = "in",
        shared: bool = False,
        weighted: bool = False,
        iterations: PositiveInt = 50,
        seed: int = 0,
    ) -> None:
        if weighted and axis == "out":
            raise UserError("`weighted` counts inputs, which lie along axis `in`")
        self.codes, self.width, self.axis, self.shared = codes, width, axis, shared
        self.iterations, self.seed = iterations, seed
        self.weighted = weighted
        self.looks_at = "norms" if weighted else "nothing"

    def fit(
        self, compressed: CompressedModel, calibration: Calibration, keep_dense: Sequence[str], progress: Progress = no_progress
    ) -> CompressedModel:
        weights = matrices(compressed.model, keep_dense)
        waiting: dict[str, dict[str, _Runs]] = {}
        for layer in walk(compressed.model, weights, calibration, self.looks_at):
            for name, weight in layer.weights.items():
                with of_matrix(name):
                    runs = self._runs(weight.detach().float(), compressed.held.get(name), layer.inputs.get(name))
                if self.shared:
                    waiting.setdefault(name.split(".")[-2], {})[name] = runs
                    continue
                compressed = compressed.holding(self._cluster({name: runs}))
                progress(1)
        for together in waiting.values():
            compressed = compressed.holding(self._cluster(together))
            progress(len(together))
        return compressed

    def hold(self, weight: Tensor, before: Held | None, inputs: Inputs | None, dtype: torch.dtype) -> Codebook:
        """As `compress.method.Matrixwise.hold`, with a codebook of its own."""
        return self._cluster({"": self._runs(weight, before, inputs)})[""]

    def hold_again(self, weight: Tensor, before: Held | None, first: Codebook, steps: int) -> Codebook:
        """A matrix that has moved since it was held as `first`: after so many steps of k-means from the codewords it had then,
        which come in bfloat16."""
        start = first.codewords.float() * first.scale
        assigned = self._cluster({"": self._runs(weight, before, None)}, start, steps - 1)[""]
        return assigned.refitted(weight)  # the last step's update

    def _runs(self, weight: Tensor, before: Held | None, inputs: Inputs | None) -> _Runs:
        mask = None
        if self.masked:
            if not isinstance(before, Sparse) or before.pattern is None:
                raise UserError("mvq clusters what an N:M mask left: prune with a `pattern` before it, or use vq")
            if before.axis != self.axis:
                raise UserError(f"its mask runs along axis {before.axis!r} and the codewords along {self.axis!r}")
            if self.width % before.pattern[1]:
                raise UserError(f"codewords of {self.width} are no multiple of the mask's runs of {before.pattern[1]}")
            mask = group(before.mask(), self.width, self.axis)
        scales = None
        if self.shared:
            scales = weight.square().mean(1).sqrt().half()
            weight = weight / scales.float().clamp_min(2.0**-24)[:, None]
        importance = None
        if inputs is not None:
            importance = group(inputs.mean_square.expand(weight.shape[0], -1), self.width, self.axis)
        kept = before if isinstance(before, Sparse) and self.masked else None
        shape = (weight.shape[0], weight.shape[1])
        return _Runs(shape, group(weight, self.width, self.axis), kept, mask, importance, scales)

    def _cluster(
        self, matrices: Mapping[str, _Runs], start: Tensor | None = None, iterations: int | None = None
    ) -> dict[str, Codebook]:
        """One codebook for these."""
        every = list(matrices.values())
        found = kmeans(
            torch.cat([runs.rows for runs in every]),
            self.codes,
            mask=_together([runs.mask for runs in every]),
            importance=_together([runs.importance for runs in every]),
            iterations=self.iterations if iterations is None else iterations,
            seed=self.seed,
            start=start,
        )
        codewords, scale = _to_int8(found)
        parts = found.assignments.split([len(runs.rows) for runs in every])
        bits = code_bits(len(codewords))
        return {
            name: Codebook(
                runs.shape,
                self.axis,
                codewords,
                scale,
                pack(part, bits),
                None if runs.before is None else runs.before.packed_mask,
                None if runs.before is None else runs.before.pattern,
                runs.row_scales,
            )
            for (name, runs), part in zip(matrices.items(), parts, strict=True)
        }


def _to_int8(found: Clusters) -> tuple[Tensor, Tensor]:
    """s = max |C| / 127; q = round(C / s)."""
    scale = found.codewords.abs().max().clamp_min(1e-12) / 127
    return (found.codewords / scale).round().to(torch.int8), scale


def _together(parts: Sequence[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None
