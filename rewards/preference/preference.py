"""What a model of `job: preference` finds a completion worth, and what it would be worth by each of its codes.

    r_k = implicit reward of y under π(·|x, e_k) (`rewards.implicit_reward`)      r = Σ_k p(k|x) r_k

p is the model's prior over its latent codes (`rlcore.latent`). In the ledger stand r, and measured beside it `code_k`, r_k, and
`prior_k`, p(k|x): by what the completion is good, and how much that counts for this prompt. A model without codes has r alone.
Worked: p = (¼, ¾) and r_k = (2, −2) make r = −1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from rewards.implicit_reward import FILE, ImplicitReward, load_implicit_reward
from rewards.reader import TOKENS, Dtype
from rlcore.batch import cut_by_length, pad
from rlcore.conversation import ConversationPrompter
from rlcore.data.preferences import Message
from rlcore.errors import UserError
from rlcore.latent import load_latent
from rlcore.models import ModelSpec, load_tokenizer, locate
from rlcore.protocols import Reward
from rlcore.recipe.schema import Prompt
from rlcore.types import Group, Score, Scored
from rollout.latent import code_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Texts = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]  # prompts and answers, token ids


class Preference(Reward):
    """`model`: a run folder of `job: preference`. `reference`: the model that it began as, where its loss measures from one.
    `template`: what the user was told in that job. `tokens`: of a pass, padding included."""

    def __init__(
        self,
        *,
        model: str,
        reference: str = "",
        template: str = "{problem}",
        dtype: Dtype = "float32",
        device: str = "auto",
        tokens: PositiveInt = TOKENS,
    ) -> None:
        self.spec = ModelSpec(locate(model), dtype, device)
        if not (Path(self.spec.location) / FILE).is_file():
            raise UserError(f"preference: {model} is no run folder of `job: preference`: it has no {FILE}")
        self.implicit: ImplicitReward = load_implicit_reward(Path(self.spec.location))
        if self.implicit.relative and not reference:
            raise UserError(f"preference: {model} measures from the model that it began as: name that as `reference`")
        self.reference = ModelSpec(locate(reference), dtype, device) if self.implicit.relative else None
        self.prompt, self.tokens = Prompt(template=template), tokens
        self.judge: _Judge | None = None  # None before the first score, which loads it

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        if self.judge is None:
            self.judge = _Judge(self)
        asked = [(group.problem.prompt, c.text, c.truncated) for group in groups for c in group.completions]
        return [_scored(prior, worth) for prior, worth in self.judge.worth(asked)]


class _Judge:
    """The models, loaded."""

    def __init__(self, asked: Preference) -> None:
        self.implicit, self.tokens = asked.implicit, asked.tokens
        self.prompter = ConversationPrompter(asked.prompt, load_tokenizer(asked.spec.location))
        self.model = asked.spec.load().eval()
        self.reference = None if asked.reference is None else asked.reference.load().eval()
        self.latent = load_latent(asked.spec.location)
        if self.latent is not None:
            self.latent = self.latent.to(self.model.device)

    @torch.inference_mode()
    def worth(self, asked: Sequence[tuple[str, str, bool]]) -> list[tuple[list[float], list[float]]]:
        """Of each prompt and answer, which may have been cut: p(k|x) and r_k. One of each where there are no codes."""
        texts = [
            (self.prompter.render_conversation([Message("user", prompt)]), self.prompter.complete(answer, ends=not cut))
            for prompt, answer, cut in asked
        ]
        nothing = torch.zeros(1, 1, device=self.model.device)
        head = self.model.get_output_embeddings().weight
        found, states = self._logprobs(self.model, texts, nothing if self.latent is None else code_logits(self.latent, head))
        beside: list[Tensor] | list[None] = [None] * len(texts)
        if self.reference is not None:
            beside = self._logprobs(self.reference, texts, nothing)[0]
        one = torch.ones(len(texts), 1)
        priors = one if self.latent is None or not texts else self.latent.log_prior(torch.stack(states)).exp()
        return [
            (prior.tolist(), self.implicit(logprobs, reference, torch.ones_like(logprobs)).tolist())
            for prior, logprobs, reference in zip(priors, found, beside, strict=True)
        ]

    def _logprobs(self, model: PreTrainedModel, texts: Texts, added: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(K, t) of each answer's tokens, with each row (V,) of `added` in the logits; and the states (H,) of the prompts."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        head = model.get_output_embeddings()
        for part in cut_by_length({i: len(prompt) + len(answer) for i, (prompt, answer) in enumerate(texts)}, self.tokens):
            ids = pad([(*texts[i][0], *texts[i][1]) for i in part], torch.long).to(model.device)
            hidden = model.get_decoder()(ids, use_cache=False).last_hidden_state
            for row, i in enumerate(part):
                (prompt, answer), targets = texts[i], torch.tensor(texts[i][1], device=model.device)[:, None]
                logits = head(hidden[row, len(prompt) - 1 : len(prompt) + len(answer) - 1]).float()
                logprobs = [(logits + each).log_softmax(-1).gather(1, targets)[:, 0] for each in added]
                found[i] = torch.stack(logprobs), hidden[row, len(prompt) - 1]
        return [found[i][0] for i in range(len(texts))], [found[i][1] for i in range(len(texts))]


def _scored(prior: Sequence[float], worth: Sequence[float]) -> Scored:
    value = sum(p * r for p, r in zip(prior, worth, strict=True))
    if len(worth) == 1:
        return Scored(value)
    best = max(range(len(worth)), key=lambda k: worth[k])
    measured = {f"code_{k}": r for k, r in enumerate(worth)} | {f"prior_{k}": p for k, p in enumerate(prior)}
    return Scored(value, f"best by code {best}: {worth[best]:.2f}, which counts {prior[best]:.2f}", measured=measured)
