"""Log-probs and entropies of given tokens under a causal language model, without ever holding a full batch of logits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlcore.batch import pad


class TokenLogprobs(nn.Module):
    """`token_logprobs` of a model, computed in `dtype`, as a module's forward pass: what DeepSpeed can wrap. Entropies have a
    gradient with `learns_entropy` only: it costs as much again as that of the log-probs."""

    def __init__(self, model: nn.Module, learns_entropy: bool = False) -> None:
        super().__init__()
        self.model, self.learns_entropy = model, learns_entropy

    def forward(
        self,
        dtype: torch.dtype,
        prompts: Sequence[tuple[int, ...]],
        tokens: Tensor,
        lengths: Sequence[int],
        temperature: float,
        chunks: int,
    ) -> tuple[Tensor, Tensor]:
        with precision(self.plain, dtype):
            return token_logprobs(self.plain, prompts, tokens, lengths, temperature, chunks, self.learns_entropy)

    @property
    def plain(self) -> PreTrainedModel:
        return plain(self.model)


class HeadScores(nn.Module):
    """One number a token of a model with a head `score`, as a module's forward pass: from the state before the token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        dtype: torch.dtype,
        prompts: Sequence[tuple[int, ...]],
        tokens: Tensor,
        lengths: Sequence[int],
        temperature: float,
        chunks: int,
    ) -> tuple[Tensor]:
        """(b, T), 0 where padded."""
        model = plain(self.model)
        with precision(model, dtype):
            hidden, where = states(model.base_model, prompts, tokens, lengths)
            flat = self.read(model.score(hidden).float())
        return (torch.zeros(tuple(tokens.shape), device=flat.device).index_put(where, flat),)

    def read(self, logits: Tensor) -> Tensor:
        """(n,) what is said by the head's (n, labels)."""
        raise NotImplementedError


def plain(model: nn.Module) -> PreTrainedModel:
    """The model itself, adapters in it."""
    found: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return found


def precision(model: nn.Module, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Within it the model computes in `dtype`; its parameters stay as they are."""
    device = next(model.parameters()).device.type
    return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype=dtype)


def token_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    tokens: Tensor,
    lengths: Sequence[int],
    temperature: float,
    chunks: int,
    learns_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """(b, T) log-probs (with gradient) and entropies (with one if asked) of right-padded `tokens` (b, T) after their prompts;
    0 where padded. Logits exist for one of `chunks` equal parts of the positions at a time, in the backward pass too.

    Rows are right-padded and the model is causal, so no token sees padding and no mask is needed: the fastest attention runs.
    """
    picked, where = states(model.get_decoder(), prompts, tokens, lengths)
    return token_logprobs_after(model, picked, where, tokens, temperature, chunks, learns_entropy)


def token_logprobs_after(
    model: PreTrainedModel,
    picked: Tensor,
    where: tuple[Tensor, Tensor],
    tokens: Tensor,
    temperature: float,
    chunks: int,
    learns_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same, given the `states` of the tokens."""
    device, targets = picked.device, tokens.to(picked.device)[where]
    *first, last = zip(picked.tensor_split(chunks), targets.tensor_split(chunks), strict=True)
    head = partial(_head, model, temperature=temperature, learns_entropy=learns_entropy)
    parts = [checkpoint(head, h, t, use_reentrant=False) for h, t in first]
    parts.append(head(*last))  # its backward comes first: nothing would be saved by computing it twice
    flat_logprobs, flat_entropies = (torch.cat(part) for part in zip(*parts, strict=True))
    shape = tuple(tokens.shape)
    logprobs = torch.zeros(shape, device=device).index_put(where, flat_logprobs)
    return logprobs, torch.zeros(shape, device=device).index_put(where, flat_entropies)


def states(
    decoder: nn.Module, prompts: Sequence[tuple[int, ...]], tokens: Tensor, lengths: Sequence[int]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The decoder's last hidden states (Σ lengths, hidden) from which each of `tokens` (b, T) is predicted, and where the
    tokens stand: their rows and columns."""
    return predicting(hidden_states(decoder, prompts, tokens, lengths), prompts, lengths)


def hidden_states(decoder: nn.Module, prompts: Sequence[tuple[int, ...]], tokens: Tensor, lengths: Sequence[int]) -> Tensor:
    """(b, longest, hidden) the decoder's last ones, of prompts and tokens."""
    rows = [[*prompt, *tokens[i, :n].tolist()] for i, (prompt, n) in enumerate(zip(prompts, lengths, strict=True))]
    device = next(decoder.parameters()).device
    hidden: Tensor = decoder(pad(rows, torch.long).to(device), use_cache=False).last_hidden_state
    return hidden


def predicting(
    hidden: Tensor, prompts: Sequence[tuple[int, ...]], lengths: Sequence[int]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Of `hidden_states` what `states` gives."""
    device = hidden.device
    row = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)]).to(device)
    column = torch.cat([torch.arange(n) for n in lengths]).to(device)
    before = torch.cat([torch.arange(n) + len(p) - 1 for p, n in zip(prompts, lengths, strict=True)]).to(device)
    return hidden[row, before], (row, column)


def _head(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, temperature: float, learns_entropy: bool
) -> tuple[Tensor, Tensor]:
    logits = model.get_output_embeddings()(hidden).float() / temperature
    normaliser = logits.logsumexp(-1)
    logprobs = logits.gather(1, targets[:, None])[:, 0] - normaliser
    with torch.set_grad_enabled(learns_entropy and torch.is_grad_enabled()):
        entropy = normaliser - ((logits - normaliser[:, None]).exp() * logits).sum(-1)
    return logprobs, entropy
