"""Estimators of KL(π ‖ π_ref) at a sampled token, from d = log π − log π_ref (Schulman 2020, "Approximating KL divergence").

    k1 = d                      unbiased value; as a loss its expected gradient is zero
    k2 = d² / 2                 biased value; on-policy its gradient is that of the reverse KL
    k3 = exp(−d) + d − 1        unbiased, never negative; as a loss its gradient is that of the forward KL
    k3_plus                     the value of k3 with the gradient of k2

Tang & Munos 2025 (arXiv 2506.09477) derive the gradients. A recipe's `algorithm.kl.estimator` names one of these.
"""

from __future__ import annotations

from torch import Tensor


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    return logprobs - reference


def k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    return 0.5 * (logprobs - reference) ** 2


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    d = (logprobs - reference).clamp(-20, 20)
    return (-d).expm1() + d  # as exp − 1 it would be noise of either sign where d is small


def k3_plus(logprobs: Tensor, reference: Tensor) -> Tensor:
    gradient = k2(logprobs, reference)
    return k3(logprobs, reference).detach() + gradient - gradient.detach()
