"""What a held-out set's codes say: how many are in use, and how much they know of what decided a pair, where that is known.

    perplexity           exp H(mean q): codes in use; 1 where all pairs share one (collapse), K where all are used alike
    prior_perplexity     the same of p
    information          I(k; factor), nats, of joint(k, f) = mean over pairs of q_k · [factor = f]: what the posterior knows
    prior_information    the same of p: what can be known before an answer is seen
    factor_entropy       H(factor), which neither can be above

Worked: two factors as likely, q = (1, 0) for the one and (½, ½) for the other. joint = (½, 0; ¼, ¼), so
I = ½ log 4/3 + ¼ log 2/3 + ¼ log 2 = 0.216 nats of 0.693.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainers.preference.latent import divergence, entropy


def code_metrics(log_posterior: Tensor, log_prior: Tensor, factors: Sequence[str | None]) -> dict[str, float]:
    """`kl` and `prior_entropy` are means over the pairs (n, K)."""
    posterior, prior = log_posterior.exp().double(), log_prior.exp().double()
    found = {
        "kl": divergence(log_posterior, log_prior).mean(),
        "prior_entropy": entropy(log_prior).mean(),
        "perplexity": entropy_of(posterior.mean(0)).exp(),
        "prior_perplexity": entropy_of(prior.mean(0)).exp(),
    }
    if None not in factors:
        known = sorted({str(factor) for factor in factors})
        is_it = torch.tensor([[factor == each for each in known] for factor in factors], dtype=torch.float64)
        found |= {
            "information": information(posterior, is_it),
            "prior_information": information(prior, is_it),
            "factor_entropy": entropy_of(is_it.mean(0)),
        }
    return {name: float(value) for name, value in found.items()}


def information(codes: Tensor, factors: Tensor) -> Tensor:
    """Nats, of (n, K) probabilities of codes and (n, F) factors."""
    joint = codes.T @ factors / len(codes)
    return entropy_of(joint.sum(0)) + entropy_of(joint.sum(1)) - entropy_of(joint.flatten())


def entropy_of(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum()
