"""LPC: preferences that differ by what decides them, each pair with a code of its own (`rlcore.latent` has the networks).

    ŵ_q = softmax((log q(·|x, y_w ≻ y_l) + G) / τ)      ŵ_p = softmax((log p(·|x) + G) / τ)
    z = Σ_k [(1 − g) ŵ_q + g ŵ_p]_k e_k
    L = preference loss of π(·|x, z) + λ · KL(q ‖ p)

G are K numbers of Gumbel noise a pair, λ is `kl_weight`. The reference is not conditioned on z. g goes on a straight line from
the posterior to the prior while training (eq. 11), as answers are later made by the prior alone: held-out pairs are judged with
its expected code, Σ_k p_k e_k. What could not be found in what the paper (arXiv 2505.04993) says, and is ours: that codes are
mixed rather than probabilities, with one G for both; that τ too goes on a straight line; and every number in
`rlcore.recipe.schema.Latent`. With K = 1, ŵ is 1 and KL is 0: the control.

Worked: q = (½, ½), p = (¼, ¾): KL = ½ log 2 + ½ log ⅔ = 0.144. With G = 0, τ = 1, g = ½: ŵ = (⅜, ⅝).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.batch import GradedBatch
from rlcore.latent import LatentCodes, states_after
from rlcore.recipe.schema import Latent
from rlcore.run.metrics import Metrics
from rlcore.types import seed_from
from trainers.logprobs import TokenLogprobs, hidden_states, precision, predicting, token_logprobs_after
from trainers.objective import Loss, Part, mean
from trainers.preference.objective import PairInputs, PairLearner, PairObjective, pair_metrics, spread
from trainers.scorer import Pass, rank


@dataclass(frozen=True)
class Draw:
    """What a step's codes of n pairs are drawn with."""

    noise: Tensor  # (n, K) Gumbel
    temperature: float
    prior_share: float

    def weights(self, log_posterior: Tensor, log_prior: Tensor) -> Tensor:
        """(n, K) ŵ, with gradient."""
        noise = self.noise.to(log_prior.device)
        drawn = [((log + noise) / self.temperature).softmax(-1) for log in (log_posterior, log_prior)]
        return (1 - self.prior_share) * drawn[0] + self.prior_share * drawn[1]


class LatentLogprobs(TokenLogprobs):
    """The log-probs of pairs under their codes, and log q and log p (n, K). Without a `draw` the code is the prior's expected
    one."""

    def __init__(self, model: nn.Module, settings: Latent, seed: int) -> None:
        super().__init__(model)
        self.reaches_backbone = settings.reaches_backbone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_from("latent codes", seed) % 2**32)
            codes = LatentCodes(self.plain.config.get_text_config().hidden_size, settings.codes, settings.width)
            nn.init.normal_(codes.codebook, std=settings.scale)
        self.codes = codes.to(self.plain.device)
        for parameter in self.codes.parameters():
            parameter.rate = settings.rate  # of the learning rate (`trainers.backends.torch`)

    def forward(  # type: ignore[override]
        self,
        dtype: torch.dtype,
        prompts: Sequence[tuple[int, ...]],
        tokens: Tensor,
        lengths: Sequence[int],
        temperature: float,
        chunks: int,
        draw: Draw | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        model = self.plain
        with precision(model, dtype):
            hidden = hidden_states(model.get_decoder(), prompts, tokens, lengths)
        asked = [len(prompt) for prompt in prompts]
        read = hidden if self.reaches_backbone else hidden.detach()
        answers = states_after(read, [n + more for n, more in zip(asked, lengths, strict=True)])
        log_prior = self.codes.log_prior(states_after(read, asked)[::2])
        log_posterior = self.codes.log_posterior(answers[::2], answers[1::2])
        weights = log_prior.exp() if draw is None else draw.weights(log_posterior, log_prior)
        z = weights @ self.codes.codebook
        picked, where = predicting(hidden, prompts, lengths)
        with precision(model, dtype):
            conditioned = picked + z[where[0] // 2].to(picked.dtype)
            logprobs, _ = token_logprobs_after(model, conditioned, where, tokens, temperature, chunks)
        return logprobs, log_posterior, log_prior


@dataclass(frozen=True)
class LatentInputs(PairInputs):
    log_posterior: Tensor  # (n, K), with gradient
    log_prior: Tensor


@dataclass(frozen=True)
class LatentObjective(PairObjective):
    kl_weight: float

    def inputs(self, part: Part, outputs: tuple[Tensor, ...]) -> LatentInputs:
        _, log_posterior, log_prior = outputs
        return LatentInputs(**vars(super().inputs(part, outputs)), log_posterior=log_posterior, log_prior=log_prior)

    def __call__(self, inputs: PairInputs) -> Loss:
        """Metrics beside those of pairs: `kl`, and the `prior_entropy` and `posterior_entropy` of a pair, in nats."""
        assert isinstance(inputs, LatentInputs)
        rewards, log_q, log_p = self.rewards(inputs), inputs.log_posterior, inputs.log_prior
        kl = divergence(log_q, log_p)
        losses = self.loss(rewards[:, 0] - rewards[:, 1]) + self.kl_weight * kl
        each = torch.ones_like(kl)
        metrics: Metrics = {
            "kl": mean(kl.detach(), each),
            "prior_entropy": mean(entropy(log_p.detach()), each),
            "posterior_entropy": mean(entropy(log_q.detach()), each),
        }
        return spread(losses, inputs.mask, pair_metrics(rewards.detach()) | metrics)


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """(n,) KL(q ‖ p), nats."""
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def entropy(log: Tensor) -> Tensor:
    """(n,) nats."""
    return -(log.exp() * log).sum(-1)


class LatentLearner(PairLearner):
    """A learner of `LatentObjective` with the head `LatentLogprobs`. A pair's noise depends on the seed, the step and the pair
    alone."""

    def __init__(self, *arguments: Any, latent: Latent, seed: int, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.latent, self.seed = latent, seed

    def arguments(self, batch: GradedBatch, each: Pass) -> tuple[Any, ...]:
        draw = self.draw(batch.group[each.rows[::2]].tolist()) if self.model.training else None
        return (*super().arguments(batch, each), draw)

    def draw(self, pairs: Sequence[int]) -> Draw:
        """Of the step that comes next, for the pairs of these numbers."""
        progress = min(1.0, self.updates / max(1, self.total_updates - 1))
        temperature, prior_share = (
            first + progress * (last - first) for first, last in (self.latent.temperature, self.latent.prior_share)
        )
        noise = [gumbel(self.latent.codes, seed_from("gumbel", self.seed, self.updates, pair)) for pair in pairs]
        return Draw(torch.stack(noise), temperature, prior_share)

    def extractors(self) -> dict[str, Callable[[Any], Tensor]]:
        """`log_posterior` and `log_prior` too, (n, K)."""
        return super().extractors() | {
            "log_posterior": lambda inputs: inputs.log_posterior,
            "log_prior": lambda inputs: inputs.log_prior,
        }

    @property
    def codes(self) -> LatentCodes:
        assert isinstance(self.module, LatentLogprobs)
        return self.module.codes

    def save(self, folder: Path) -> None:
        """`model/` holds the codes too."""
        super().save(folder)
        if not rank():
            self.codes.save(folder / "model")


def gumbel(count: int, seed: int) -> Tensor:
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return -torch.log(-torch.log(uniform.clamp(min=1e-12))).float()
