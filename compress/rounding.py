"""A matrix rounded to a grid: the one way in which the quantisers of `compress/quantise` do it.

    run g of a row:   s_g = c · max |w|,   q = nearest level of w / s_g,   ŵ = s_g · ℓ[q]

c is 1, or of several the one with the least Σ (w − ŵ)² of the run: clipping at c · max |w|.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from compress.activations import Activations, quantise_inputs
from compress.calibration import Calibration, Inputs
from compress.compressed import CompressedModel
from compress.formats.levels import Levels
from compress.grids import levels, nearest_code
from compress.held import Held
from compress.method import Matrixwise
from compress.packing import pack
from rlcore.errors import UserError
from rlcore.protocols import Progress, no_progress

Bits = Annotated[int, Field(ge=2, le=8)]
Run = Annotated[int, Field(ge=0)]  # weights of a row that share a scale; 0: the whole row


def round_to_grid(weight: Tensor, grid: str, bits: int, run: int, clips: Sequence[float] = (1.0,)) -> Levels:
    """(O, I) → levels. Raises UserError where a row is no multiple of the run."""
    outputs, inputs = weight.shape
    run = run or inputs
    if inputs % run:
        raise UserError(f"rows of {inputs} weights are no multiple of runs of {run}")
    runs = weight.float().reshape(outputs, -1, run)
    table = levels(grid, bits).to(weight.device)
    largest = runs.abs().amax(-1, keepdim=True)
    if not largest.half().isfinite().all():
        raise UserError(f"a weight of {float(largest.max()):.3g} has no scale in float16")
    best = torch.full_like(largest, torch.inf)
    codes, scales = torch.zeros_like(runs, dtype=torch.long), torch.zeros_like(largest)
    for clip in clips:
        scale = (clip * largest).half().float()
        found = nearest_code(runs / scale.clamp_min(2.0**-24), grid, bits)  # the least that float16 has
        error = (table[found] * scale - runs).square().sum(-1, keepdim=True)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, scale, scales)
        codes = torch.where(better, found, codes)
    return Levels((outputs, inputs), grid, bits, pack(codes, bits), scales[..., 0].half())


class Rounding(Matrixwise):
    """A method that rounds to one grid. With `activations`, the matrices' inputs are rounded to the grid too, at that many
    bits (W8A8), each token with a scale of its own."""

    grid: str
    clips: Sequence[float] = (1.0,)

    def __init__(self, *, bits: Bits = 4, run: Run = 128, activations: Bits | None = None) -> None:
        levels(self.grid, bits)  # refused where there is no such table
        self.bits, self.run, self.activations = bits, run, activations

    def hold(self, weight: Tensor, before: Held | None, inputs: Inputs | None, dtype: torch.dtype) -> Held:
        return round_to_grid(weight, self.grid, self.bits, self.run, self.clips)

    def fit(
        self, compressed: CompressedModel, calibration: Calibration, keep_dense: Sequence[str], progress: Progress = no_progress
    ) -> CompressedModel:
        done = super().fit(compressed, calibration, keep_dense, progress)
        return done if self.activations is None else _with_inputs(done, Activations(self.grid, self.activations))


def _with_inputs(compressed: CompressedModel, to: Activations) -> CompressedModel:
    quantise_inputs(compressed.model, list(compressed.held), to)
    return replace(compressed, activations=to)
