"""What a compressed model still knows: how well it predicts held-out problems and their solutions.

perplexity   exp of the mean negative log-prob of a token, over prompts and solutions, the first token of each left out
solution     mean log-prob, in nats, of a token of the solutions given what comes before
divergence   mean over the solutions' tokens of KL( p_dense ‖ p ), in nats
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from compress.mixture.router import Usage, pooled, usage
from rlcore.batch import cut_by_length, pad
from rlcore.protocols import Progress, no_progress

PADDED = 4096  # tokens of a pass


@dataclass(frozen=True)
class Text:
    """A problem and its solution as tokens."""

    prompt: tuple[int, ...]
    solution: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.prompt, *self.solution)


Logprobs = Callable[[Tensor], Tensor]  # ids (b, T) → (b, T − 1, V) of what comes after each token but the last


@torch.inference_mode()
def measure(
    model: PreTrainedModel, texts: Sequence[Text], dense: Logprobs | None = None, progress: Progress = no_progress
) -> dict[str, float]:
    """perplexity and solution; with what `dense` says divergence too. `progress` hears of texts."""
    every = told = divergence = 0.0
    tokens = told_tokens = 0
    for part, rows in _passes(texts):
        ids = rows.to(model.device)
        of_solution = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
        there = torch.zeros_like(of_solution)
        for row, i in enumerate(part):
            there[row, 1 : len(texts[i].ids)] = True
            of_solution[row, max(1, len(texts[i].prompt)) : len(texts[i].ids)] = True
        found = logprobs(model, ids)
        of_tokens = found.gather(2, ids[:, 1:, None])[..., 0]
        every += float(of_tokens[there[:, 1:]].sum(dtype=torch.float64))
        told += float(of_tokens[of_solution[:, 1:]].sum(dtype=torch.float64))
        tokens += int(there.sum())
        told_tokens += int(of_solution.sum())
        if dense is not None:
            each = kl_div(found, dense(ids), log_target=True, reduction="none").sum(2)
            divergence += float(each[of_solution[:, 1:]].sum(dtype=torch.float64))
        progress(len(part))
    measured = {"perplexity": math.exp(-every / tokens), "solution": told / told_tokens}
    return measured if dense is None else measured | {"divergence": divergence / told_tokens}


def logprobs(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Right-padded rows: causal attention sees no padding."""
    found: Tensor = model(ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    return found


@torch.inference_mode()
def remembered(model: PreTrainedModel, texts: Sequence[Text], progress: Progress = no_progress) -> Logprobs:
    """What the model says of these texts now, also when its weights have changed; 4 V bytes a token, on its device."""
    said: dict[bytes, Tensor] = {}
    for part, rows in _passes(texts):
        said[rows.numpy().tobytes()] = logprobs(model, rows.to(model.device))
        progress(len(part))
    return lambda ids: said[ids.cpu().numpy().tobytes()]


@torch.inference_mode()
def routed(model: PreTrainedModel, texts: Sequence[Text]) -> Usage:
    """How a Mixture-of-Modules routes the tokens of the texts, problems and solutions alike."""
    batches, tokens = [], []
    for part, rows in _passes(texts):
        there = pad([(True,) * len(texts[i].ids) for i in part], torch.bool).to(model.device)
        batches.append(usage(model(rows.to(model.device), use_cache=False).routing, there))
        tokens.append(int(there.sum()))
    return pooled(batches, tokens)


def _passes(texts: Sequence[Text]) -> Iterator[tuple[list[int], Tensor]]:
    """Which texts go together, and their tokens (b, T), right-padded."""
    for part in cut_by_length({i: len(text.ids) for i, text in enumerate(texts)}, PADDED):
        yield part, pad([texts[i].ids for i in part], torch.long)
