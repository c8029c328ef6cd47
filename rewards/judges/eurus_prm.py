"""EurusPRM, an implicit process reward model (Yuan et al. 2024, arXiv 2412.01981, Proposition 3.1): two language models.

    log-odds after step k = q_k = β · Σ_i log π(y_i|y_<i) / π_ref(y_i|y_<i)

over the tokens y_i of the solution up to the end of step k, the empty line after it included. That is the sum so far, not that
of the step alone (q_k − q_{k−1}, the paper's process reward): the model's training took σ(q) of the whole for P(right), and its
authors' snippet for scoring steps adds up likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from transformers import AutoModelForCausalLM

from rewards.judged_text import Asked, Row
from rewards.reader import TOKENS, Dtype, Reader, Running, running
from rlcore.errors import UserError
from rlcore.models import ModelSpec, load_tokenizer, locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class EurusPrm(Reader):
    """`model`: PRIME-RL/EurusPRM-Stage1, PRIME-RL/EurusPRM-Stage2, or the language model of another such pair. `reference`:
    π_ref, for these Qwen/Qwen2.5-Math-7B-Instruct. `beta`: 0.001 is that of the authors' snippet."""

    kind = "EurusPRM"

    def __init__(
        self,
        *,
        model: str,
        reference: str,
        beta: PositiveFloat = 0.001,
        dtype: Dtype = "float32",
        device: str = "auto",
        tokens: PositiveInt = TOKENS,
    ) -> None:
        super().__init__(ModelSpec(locate(model), dtype, device), tokens)
        self.chat(("user", ""))  # refused before anything large is loaded
        other = ModelSpec(locate(reference), dtype, device)
        ids = load_tokenizer(other.location).get_vocab()
        if any(ids.get(token, i) != i for token, i in self.tokenizer.get_vocab().items()):
            raise UserError(f"reference {reference!r} has other tokens than {model!r}: it must be the model that this began as")
        self.beta = beta
        self._other = other

    def read_weights(self) -> PreTrainedModel:
        return self.weights_of(AutoModelForCausalLM)

    @cached_property
    def reference(self) -> PreTrainedModel:
        return self._other.load().eval()

    @property
    def weights(self) -> int:
        return 2 * super().weights

    def load(self) -> None:
        super().load()
        _ = self.reference

    def rows(self, asked: Sequence[Asked]) -> list[Row]:
        return running(asked, self._pieces)

    def _pieces(self, problem: str, steps: tuple[str, ...]) -> tuple[list[int], list[list[int]]]:
        before = self.encode(self.chat(("user", problem), reply=True))
        return before, [self.encode(step.strip() + "\n\n") for step in steps]

    def found(self, rows: Sequence[Row], ids: Tensor) -> Tensor:
        begins = [row.begin for row in cast("Sequence[Running]", rows)]
        said = [(i, at) for i, row in enumerate(rows) for at in range(begins[i], len(row.ids))]
        where = [i for i, _ in said], [at for _, at in said]
        ratio = torch.zeros(ids.shape, device=ids.device)
        ratio[where] = _logprobs(self.model, ids, where) - _logprobs(self.reference, ids, where)
        q = self.beta * ratio.cumsum(1)
        return torch.cat([q[i, list(row.ends)] for i, row in enumerate(rows)])


def _logprobs(model: PreTrainedModel, ids: Tensor, where: tuple[list[int], list[int]]) -> Tensor:
    """(N,) of the tokens at (rows, positions), each after those before it. A thousand at a time: vocabularies are large."""
    hidden = model.base_model(ids, use_cache=False).last_hidden_state[where[0], [at - 1 for at in where[1]]]
    head, chunks = model.get_output_embeddings(), zip(hidden.split(1024), ids[where].split(1024), strict=True)
    return torch.cat([head(h).float().log_softmax(-1).gather(1, token[:, None])[:, 0] for h, token in chunks])
