"""Log-probs and entropies of given tokens under a causal language model, without ever holding a full batch of logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlcore.batch import pad


def token_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    tokens: Tensor,
    lengths: Sequence[int],
    temperature: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """(b, T) log-probs (with gradient) and entropies (without) of right-padded `tokens` (b, T) after their prompts; 0 where
    padded. Logits exist for `chunk` positions at a time, in the backward pass too.

    Rows are right-padded and the model is causal, so no token sees padding and no mask is needed: the fastest attention runs.
    """
    device = next(model.parameters()).device
    rows = [[*prompt, *tokens[i, :n].tolist()] for i, (prompt, n) in enumerate(zip(prompts, lengths, strict=True))]
    hidden = model.get_decoder()(pad(rows, torch.long).to(device), use_cache=False).last_hidden_state
    row = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)]).to(device)
    column = torch.cat([torch.arange(n) for n in lengths]).to(device)
    predicting = torch.cat([torch.arange(n) + len(p) - 1 for p, n in zip(prompts, lengths, strict=True)]).to(device)
    picked, targets = hidden[row, predicting], tokens.to(device)[row, column]
    *first, last = zip(picked.split(chunk), targets.split(chunk), strict=True)
    parts = [checkpoint(_head, model, h, t, temperature, use_reentrant=False) for h, t in first]
    parts.append(_head(model, *last, temperature))  # its backward comes first: nothing would be saved by computing it twice
    flat_logprobs, flat_entropies = (torch.cat(part) for part in zip(*parts, strict=True))
    shape = tuple(tokens.shape)
    logprobs = torch.zeros(shape, device=device).index_put((row, column), flat_logprobs)
    return logprobs, torch.zeros(shape, device=device).index_put((row, column), flat_entropies)


def _head(model: PreTrainedModel, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = model.get_output_embeddings()(hidden).float() / temperature
    normaliser = logits.logsumexp(-1)
    logprobs = logits.gather(1, targets[:, None])[:, 0] - normaliser
    with torch.no_grad():
        entropy = normaliser - ((logits - normaliser[:, None]).exp() * logits).sum(-1)
    return logprobs, entropy
