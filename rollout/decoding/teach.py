"""How heads (`rollout.decoding.heads`) learn: from what the target itself sampled, and at all of its tokens at once,

    L = Σ_i γ^{i−1} · mean over n of KL( p(· | h_{n+i}) ‖ p̃_i(· | n) )                                    i = 1 … k

(Wu et al. 2024, arXiv 2410.20488), p the target, which is left as it is. n runs over the sampled tokens and the one before
them, as far as n+i is one of them. Sequences are read in passes of a bounded size, and their logits a few at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlcore.batch import pad
from rollout.decoding.heads import Heads

PLACES_AT_ONCE = 256  # of a text, whose logits over the vocabulary exist at one time


class Text(NamedTuple):
    """A prompt and a completion of it."""

    ids: tuple[int, ...]
    begin: int  # the place of the completion's first token


@dataclass
class Found:
    """What heads say of texts, summed over places; an entry for each step i = 1 … k."""

    places: Tensor  # (k,) how many there are
    divergence: Tensor  # (k,) KL, nats
    agreed: Tensor  # (k,) where the target's likeliest token is theirs
    whole: int = 0  # places that all steps have
    run: int = 0  # steps that agree in a row, from the first on, at these

    def metrics(self) -> dict[str, float]:
        """`tokens_per_pass` is that of greedy decoding with one guess a step."""
        steps = range(1, 1 + len(self.places))
        of = {"kl": self.divergence / self.places, "agreement": self.agreed / self.places}
        found = {f"{name}_{i}": float(values[i - 1]) for name, values in of.items() for i in steps}
        return {"tokens_per_pass": 1 + self.run / max(1, self.whole), **found}


def learn(heads: Heads, model: PreTrainedModel, texts: Sequence[Text], tokens_at_once: int, decay: float) -> Found:
    """Add the gradient of L over the texts to that of the heads. `decay`: γ; `tokens_at_once`: of a pass, pseudo states
    included."""
    found = _nothing(heads, texts)
    weight = decay ** torch.arange(heads.steps) / found.places.clamp(min=1)
    parameters = list(heads.parameters())  # the target's own get no gradient, whoever learns beside
    for part in _parts(texts, tokens_at_once // (1 + heads.steps)):
        real, ahead = heads(model, *_read(part, model))
        leaf = ahead.detach().requires_grad_()  # so that logits, made piece by piece, are gone before the passes' own backward
        for loss in _compared(found, part, real, leaf, model):
            (loss * weight.to(loss)).sum().backward(inputs=[leaf])
        ahead.backward(leaf.grad, inputs=parameters)
    return found


@torch.no_grad()
def measure(heads: Heads, model: PreTrainedModel, texts: Sequence[Text], tokens_at_once: int) -> Found:
    """What heads say of these texts."""
    found = _nothing(heads, texts)
    for part in _parts(texts, tokens_at_once // (1 + heads.steps)):
        real, ahead = heads(model, *_read(part, model))
        for _ in _compared(found, part, real, ahead, model):
            pass
    return found


def _nothing(heads: Heads, texts: Sequence[Text]) -> Found:
    places = [sum(max(0, len(text.ids) - text.begin - i) for text in texts) for i in range(heads.steps)]
    return Found(torch.tensor(places, dtype=torch.float64), *torch.zeros(2, heads.steps, dtype=torch.float64))


def _parts(texts: Sequence[Text], tokens: int) -> Iterator[list[Text]]:
    """Texts of about one length, so many that they have, padded, no more `tokens`; one at least."""
    part: list[Text] = []
    for text in sorted(texts, key=lambda text: -len(text.ids)):
        if part and (1 + len(part)) * len(part[0].ids) > tokens:
            yield part
            part = []
        part.append(text)
    if part:
        yield part


def _read(texts: Sequence[Text], model: PreTrainedModel) -> tuple[Tensor, int]:
    """What heads read of texts: their tokens, padded, and the first place from which they are to guess."""
    return pad([text.ids for text in texts], torch.long).to(model.device), min(text.begin for text in texts) - 1


def _compared(found: Found, texts: Sequence[Text], real: Tensor, ahead: Tensor, model: PreTrainedModel) -> Iterator[Tensor]:
    """The divergences (k,) of some places at a time, summed; all of it is added to `found` too."""
    steps, head, device = ahead.shape[2], model.get_output_embeddings(), real.device
    first = real.shape[1] - ahead.shape[1]
    for row, text in enumerate(texts):
        for begin in range(text.begin - 1, len(text.ids) - 1, PLACES_AT_ONCE):
            n = torch.arange(begin, min(begin + PLACES_AT_ONCE, len(text.ids) - 1), device=device)
            target = head(real[row, begin + 1 : int(n[-1]) + 1 + steps]).float().log_softmax(-1)
            later = n[:, None] - begin + torch.arange(steps, device=device)  # (places, k) in `target`
            there = later < len(text.ids) - begin - 1
            wanted = target[later.clamp(max=len(target) - 1)]
            said = head(ahead[row, n - first]).float().log_softmax(-1)
            divergence = ((wanted.exp() * (wanted - said)).sum(-1) * there).sum(0)
            agreed = (wanted.argmax(-1) == said.argmax(-1)) & there
            found.divergence += divergence.detach().cpu()
            found.agreed += agreed.sum(0).cpu()
            whole = there[:, -1]
            found.whole += int(whole.sum())
            found.run += int(agreed[whole].long().cumprod(1).sum())
            yield divergence
