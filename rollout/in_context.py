"""A model that has read demonstrations (`rollout.demonstrations`) and is asked about a query.

They are read once. What the query is not to see is left out of the cache: replicas cost their prefill, and nothing afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlcore.batch import pad
from rlcore.protocols import Tokens
from rollout import attention
from rollout.cache import Decode, Prefill, SlotCache
from rollout.demonstrations import Arrangement


class Reader:
    """Changes the attention implementation of `model`. Raises UserError for one with sliding-window attention.

    `room`: the most tokens that are read after the demonstrations; `rows`: the most continuations at one time.
    """

    def __init__(self, model: PreTrainedModel, shown: Arrangement, room: int, rows: int = 1) -> None:
        model.set_attn_implementation(attention.NAME)
        self.model, device = model.eval(), model.device
        columns = shown.kept.nonzero()[:, 0].to(device)
        self.length, self.position = len(columns), len(shown.ids)
        self._cache = SlotCache(model.config, rows, self.length + room, model.dtype, device)
        target, slots = torch.arange(self.length, device=device), torch.arange(rows, device=device)
        self._cache.enter(
            Prefill(
                row=torch.zeros_like(columns).repeat(rows),
                column=columns.repeat(rows),
                slot=slots.repeat_interleave(self.length),
                target=target.repeat(rows),
            )
        )
        positions = torch.arange(self.position, device=device)
        self.shown = self._hidden(shown.ids.to(device)[None], positions, shown.seen.to(device))[0]  # (T, H)

    def read(self, continuations: Tensor) -> Tensor:
        """Log-probs (rows, n, V) of what follows each token of (rows, n) after the demonstrations. What was read before is
        forgotten."""
        rows, count = continuations.shape
        width, device = self.length + count, self.model.device
        self._cache.enter(Decode(torch.full((rows,), self.length, device=device), width))
        seen = torch.ones(count, width, dtype=torch.bool, device=device).tril(self.length)
        positions = self.position + torch.arange(count, device=device)
        return self.logprobs(self._hidden(continuations.to(device), positions, seen))

    def logprobs(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits.float().log_softmax(-1)

    def labels(self, query: Tokens, labels: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """Of each label after the query, (labels,): its log-prob; and bool, whether greedy decoding writes it: each of its
        tokens is the likeliest after those before it."""
        logprobs = self.read(pad([[*query, *label] for label in labels], torch.long)).cpu()
        likelihood, greedy = torch.zeros(len(labels)), torch.zeros(len(labels), dtype=torch.bool)
        for row, label in enumerate(labels):
            said = logprobs[row, len(query) - 1 : len(query) - 1 + len(label)]  # (tokens, V)
            likelihood[row] = said[range(len(label)), label].sum()
            greedy[row] = (said.argmax(-1) == torch.tensor(label)).all()
        return likelihood, greedy

    def probability(self, at: int, label: Tokens) -> float:
        """Of a label among the demonstrations, after their token `at`."""
        logprobs = self.logprobs(self.shown[at : at + len(label)])
        return float(logprobs[range(len(label)), label].sum().exp())

    def _hidden(self, ids: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """Last hidden states (rows, n, H)."""
        hidden: Tensor = self.model.get_decoder()(
            ids,
            position_ids=positions.expand(ids.shape),
            attention_mask=torch.where(seen, 0.0, -torch.inf).to(self.model.dtype).expand(len(ids), 1, *seen.shape),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return hidden
