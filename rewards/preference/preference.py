"""What a model of `job: preference` finds a completion worth, and what it would be worth by each of its codes.

    r_k = implicit reward of y under π(·|x, e_k) (`rewards.implicit_reward`)      r = Σ_k p(k|x) r_k

p is the model's prior over its latent codes (`rlcore.latent`). In the ledger stand r, and measured beside it `code_k`, r_k, and
`prior_k`, p(k|x): by what the completion is good, and how much that counts for this prompt. A model without codes has r alone.
It is asked with the prompt that it learned with, which its run folder says, whatever the policy's is.
Worked: p = (¼, ¾) and r_k = (2, −2) make r = −1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from rewards.implicit_reward import FILE, load_implicit_reward_model
from rewards.reader import TOKENS, Dtype
from rlcore.batch import cut_by_length, pad
from rlcore.conversation import ConversationPrompter
from rlcore.data.preferences import Message
from rlcore.errors import UserError
from rlcore.latent import load_latent, states_after
from rlcore.models import ModelSpec, load_tokenizer, locate, weights_digest, without_weights
from rlcore.protocols import Reward
from rlcore.recipe.estimate import WIDTH
from rlcore.types import Group, Score, Scored

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Texts = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]  # prompts and answers, token ids


class Preference(Reward):
    """`model`: a run folder of `job: preference`. `reference`: where the model that it began as is, if not where it was then.
    `tokens`: of a pass, padding included."""

    def __init__(
        self,
        *,
        model: str,
        reference: str = "",
        dtype: Dtype = "float32",
        device: str = "auto",
        tokens: PositiveInt = TOKENS,
    ) -> None:
        if not Path(model).is_dir():
            raise UserError(f"preference: folder {model} does not exist")
        if not any((folder / FILE).is_file() for folder in (Path(model), Path(model, "model"))):
            raise UserError(
                f"preference: {model} is no run folder of `job: preference` that is finished: it has no model/{FILE}"
            )
        self.spec = ModelSpec(locate(model), dtype, device)
        self.taught = load_implicit_reward_model(Path(self.spec.location))
        self.reference: ModelSpec | None = None
        if (start := self.taught.reference) is not None:
            if not reference and Path(start.location).is_absolute() and not Path(start.location).is_dir():
                raise UserError(f"preference: {start.location}, which {model} began as, is gone: name a copy as `reference`")
            self.reference = ModelSpec(locate(reference or start.location), dtype, device)
        self.tokens = tokens

    def begin(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Loads the models. Raises UserError where the reference is not the model that training started from."""
        _ = self.judge

    @cached_property
    def judge(self) -> _Judge:
        return _Judge(self)

    @property
    def weights(self) -> int:
        """Bytes of the models that `begin` loads."""
        specs = [spec for spec in (self.spec, self.reference) if spec is not None]
        return sum(WIDTH[spec.dtype] * without_weights(spec.location).num_parameters() for spec in specs)

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        asked = [(group.problem.prompt, c.text, c.truncated) for group in groups for c in group.completions]
        return [_scored(prior, worth) for prior, worth in self.judge.worth(asked)]


class _Judge:
    """The models, loaded."""

    def __init__(self, asked: Preference) -> None:
        self.implicit, self.tokens = asked.taught.reward, asked.tokens
        self.prompter = ConversationPrompter(asked.taught.prompt, load_tokenizer(asked.spec.location))
        self.model = asked.spec.load().eval()
        self.reference = None if asked.reference is None else asked.reference.load().eval()
        start = asked.taught.reference
        if asked.reference and start and weights_digest(asked.reference.location) != start.digest:
            raise UserError(
                f"preference: the weights of {asked.reference.location} are not those that training started from, which were "
                f"in {start.location}"
            )
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
        found, states = self._logprobs(self.model, texts, nothing if self.latent is None else self.latent.logits(head))
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
            states = states_after(hidden, [len(texts[i][0]) for i in part])
            for row, i in enumerate(part):
                (prompt, answer), targets = texts[i], torch.tensor(texts[i][1], device=model.device)[:, None]
                logits = head(hidden[row, len(prompt) - 1 : len(prompt) + len(answer) - 1]).float()
                logprobs = [(logits + each).log_softmax(-1).gather(1, targets)[:, 0] for each in added]
                found[i] = torch.stack(logprobs), states[row]
        return [found[i][0] for i in range(len(texts))], [found[i][1] for i in range(len(texts))]


def _scored(prior: Sequence[float], worth: Sequence[float]) -> Scored:
    value = sum(p * r for p, r in zip(prior, worth, strict=True))
    if len(worth) == 1:
        return Scored(value)
    best = max(range(len(worth)), key=lambda k: worth[k])
    measured = {f"code_{k}": r for k, r in enumerate(worth)} | {f"prior_{k}": p for k, p in enumerate(prior)}
    return Scored(value, f"best by code {best}: {worth[best]:.2f}, which counts {prior[best]:.2f}", measured=measured)
