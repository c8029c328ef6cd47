"""Codewords learn what clustering lost; who is assigned to which, and the mask, stay as they are (MVQ, arXiv 2412.10261).

    ∂L/∂c_i = Σ_{j: a_j = i} m_j ∘ ∂L/∂ŵ_j  /  Σ_{j: a_j = i} m_j      the mean over the weights that are kept, entry by entry

AdamW, which divides by what gradients usually are, takes the denominators out again, but for its ε and the clipping. Codewords
are kept in float32 while they learn, and rounded to int8 in each forward pass, through which the gradient goes straight.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from compress.calibration import Calibration
from compress.compressed import CompressedModel
from compress.formats.codebook import Codebook
from compress.held import Held
from compress.recovery import LearningRate, Recovery
from rlcore.errors import UserError


class Codewords(Recovery):
    def __init__(self, *, steps: PositiveInt = 500, learning_rate: LearningRate = 3e-4, seed: int = 0) -> None:
        super().__init__(steps, learning_rate, seed)

    def learning(self, compressed: CompressedModel, calibration: Calibration) -> dict[str, nn.Module]:
        clustered = {name: held for name, held in compressed.held.items() if isinstance(held, Codebook)}
        if not clustered:
            raise UserError("codewords tunes codebooks, and there are none: put vq or mvq before it")
        books = _books(clustered)
        return {name: _Rebuilt(held, books[id(held.codewords)]) for name, held in clustered.items()}

    def learned(self, name: str, module: nn.Module, compressed: CompressedModel) -> Held:
        assert isinstance(module, _Rebuilt)  # `learning` makes no others
        return replace(module.held, codewords=module.book.rounded())


class _Book(nn.Module):
    """A codebook that learns, for all the matrices that share it."""

    def __init__(self, codewords: Tensor, scale: Tensor, members: Tensor) -> None:
        super().__init__()
        self.master, self.scale = nn.Parameter(codewords.float() * scale), scale
        self.master.register_hook(lambda gradient: gradient / members)  # (k, d): how many weights each entry stands for
        self.stored = codewords.clone()

    def rounded(self) -> Tensor:
        """(k, d) int8: one tensor for all who ask, so that it is stored once."""
        return self.stored.copy_((self.master.detach() / self.scale).round().clamp(-127, 127))

    def forward(self) -> Tensor:
        """(k, d) as they are stored, with the gradient of the master's."""
        return self.master + (self.rounded() * self.scale - self.master).detach()


class _Rebuilt(nn.Module):
    """The parametrization of a matrix by its book; what it was before is not looked at."""

    def __init__(self, held: Codebook, book: _Book) -> None:
        super().__init__()
        self.book, self.held = book, held
        mask = held.mask()
        self.register_buffer("assigned", held.assigned(), persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return self.held.rebuild(self.book(), self.assigned, self.mask)


def _books(clustered: dict[str, Codebook]) -> dict[int, _Book]:
    """A book for each codebook, by the identity of its tensor."""
    books: dict[int, _Book] = {}
    for key in dict.fromkeys(id(held.codewords) for held in clustered.values()):
        sharing = [held for held in clustered.values() if id(held.codewords) == key]
        members = torch.zeros(sharing[0].codewords.shape, device=sharing[0].codewords.device)
        for held in sharing:
            assigned, mask = held.assigned(), held.mask()
            counts = torch.ones(len(assigned), members.shape[1], device=members.device) if mask is None else mask.float()
            members.index_add_(0, assigned, counts)
        books[key] = _Book(sharing[0].codewords, sharing[0].scale, members.clamp_min(1))
    return books
