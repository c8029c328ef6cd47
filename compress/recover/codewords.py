"""Codewords learn what clustering lost; who is assigned to which, and the mask, stay as they are (MVQ, arXiv 2412.10261).

    ∂L/∂c_i = Σ_{j: a_j = i} m_j ∘ ∂L/∂ŵ_j  /  Σ_{j: a_j = i} m_j      the mean over the weights that are kept, entry by entry

Codewords are kept in float32 while they learn, and rounded to int8 in each forward pass, through which the gradient goes
straight. Norms and biases learn with them. The target is the dense model's distribution (`compress.distil`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.calibration import Calibration
from compress.compressed import CompressedModel
from compress.distil import distil
from compress.formats.codebook import Codebook
from compress.method import Method, beside
from rlcore.errors import UserError
from rlcore.protocols import Progress, no_progress


class Codewords(Method):
    learns = True

    def __init__(
        self,
        *,
        steps: PositiveInt = 500,
        learning_rate: Annotated[float, Field(gt=0)] = 3e-4,
        seed: int = 0,
    ) -> None:
        self.steps, self.learning_rate, self.seed = steps, learning_rate, seed

    def work(self, matrices: int) -> int:
        return self.steps

    def fit(
        self, compressed: CompressedModel, calibration: Calibration, keep_dense: Sequence[str], progress: Progress = no_progress
    ) -> CompressedModel:
        clustered = {name: held for name, held in compressed.held.items() if isinstance(held, Codebook)}
        if not clustered:
            raise UserError("codewords tunes codebooks, and there are none: put vq or mvq before it")
        model, books = compressed.model, _books(clustered)
        for name, held in clustered.items():
            module = model.get_submodule(name.removesuffix(".weight"))
            parametrize.register_parametrization(module, "weight", _Rebuilt(held, books[id(held.codewords)]))
        hooks = [book.master.register_hook(book.mean) for book in books.values()]
        distil(
            model,
            calibration,
            [*(book.master for book in books.values()), *beside(model, clustered)],
            steps=self.steps,
            learning_rate=self.learning_rate,
            seed=self.seed,
            progress=progress,
        )
        for hook in hooks:
            hook.remove()
        for name in clustered:
            parametrize.remove_parametrizations(model.get_submodule(name.removesuffix(".weight")), "weight")
        stored = {key: book.rounded() for key, book in books.items()}
        return compressed.holding(
            {name: replace(held, codewords=stored[id(held.codewords)]) for name, held in clustered.items()}
        )


class _Book(nn.Module):
    """A codebook that learns, for all the matrices that share it."""

    def __init__(self, codewords: Tensor, scale: Tensor, members: Tensor) -> None:
        super().__init__()
        self.master = nn.Parameter(codewords.float() * scale)
        self.scale, self.members = scale, members  # (k, d): how many weights each entry stands for

    def mean(self, gradient: Tensor) -> Tensor:
        return gradient / self.members

    def rounded(self) -> Tensor:
        return (self.master.detach() / self.scale).round().clamp(-127, 127).to(torch.int8)

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
