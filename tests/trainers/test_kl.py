"""The KL estimators of `trainers/kl.py`: worked values, and what its head claims of them, by enumerating a vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainers import kl

Estimator = Callable[[Tensor, Tensor], Tensor]


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of log-probs (V,)."""
    return (p.exp() * (p - q)).sum()


def policies(seed: int, distance: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits θ (7,) of a policy, its log-probs, and those of a reference `distance` away."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, dtype=torch.float64, generator=generator, requires_grad=True)
    away = distance * torch.randn(7, dtype=torch.float64, generator=generator)
    return logits, logits.log_softmax(0), (logits.detach() + away).log_softmax(0)


def expected_loss(estimator: Estimator, logprobs: Tensor, reference: Tensor) -> Tensor:
    """E over the policy of the estimator as a loss: no gradient flows through what was sampled."""
    return (logprobs.exp().detach() * estimator(logprobs, reference)).sum()


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [(kl.k1, 0.5, 1.0), (kl.k2, 0.125, 0.5), (kl.k3, 0.106531, 0.393469), (kl.k3_plus, 0.106531, 0.5)],
)
def test_worked_values(estimator: Estimator, value: float, gradient: float) -> None:
    """At d = log π − log π_ref = 0.5: d, d²/2, e^−d + d − 1 and their derivatives 1, d, 1 − e^−d; k3_plus has k3's
    value and k2's derivative."""
    logprobs = torch.tensor([-1.0], requires_grad=True)
    penalty = estimator(logprobs, torch.tensor([-1.5]))
    penalty.backward()
    assert penalty.item() == pytest.approx(value, abs=1e-6)
    assert logprobs.grad.item() == pytest.approx(gradient, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_all_but_k2_are_unbiased(seed: int) -> None:
    _, logprobs, reference = policies(seed)
    exact = divergence(logprobs, reference)
    for estimator in (kl.k1, kl.k3, kl.k3_plus):
        torch.testing.assert_close(expected_loss(estimator, logprobs, reference), exact)
    assert abs(expected_loss(kl.k2, logprobs, reference) - exact) > 1e-3


def test_the_bias_of_k2_vanishes_faster_than_the_divergence() -> None:
    """KL is of second order in the distance of the policies, k2's bias of third: ten times nearer, 1000 times smaller."""
    biases = []
    for distance in (1e-2, 1e-3):
        _, logprobs, reference = policies(0, distance)
        biases.append((expected_loss(kl.k2, logprobs, reference) - divergence(logprobs, reference)).item())
    assert biases[0] / biases[1] == pytest.approx(1000, rel=0.05)


def nothing(logprobs: Tensor, reference: Tensor) -> Tensor:
    return 0 * logprobs.sum()


def reverse_kl(logprobs: Tensor, reference: Tensor) -> Tensor:
    return divergence(logprobs, reference)


def forward_kl(logprobs: Tensor, reference: Tensor) -> Tensor:
    return divergence(reference, logprobs)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target", [nothing, reverse_kl, forward_kl])
@pytest.mark.parametrize(
    ("estimator", "own"), [(kl.k1, nothing), (kl.k2, reverse_kl), (kl.k3, forward_kl), (kl.k3_plus, reverse_kl)]
)
def test_an_estimators_expected_gradient_is_that_of_its_own_divergence_and_of_no_other(
    estimator: Estimator, own: Estimator, target: Estimator, seed: int
) -> None:
    """Tang & Munos 2025: on-policy, the gradient on θ of k1 as a loss is zero on average, those of k2 and k3_plus are the
    reverse KL's ∇KL(π ‖ π_ref), that of k3 the forward KL's ∇KL(π_ref ‖ π). Exact, in float64; exchanging k1, k2 and k3 fails,
    and so does k3_plus without its own gradient."""
    logits, logprobs, reference = policies(seed)
    (gradient,) = torch.autograd.grad(expected_loss(estimator, logprobs, reference), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(target(logprobs, reference), logits)
    difference = float((gradient - expected).abs().max())
    assert difference < 1e-12 if target is own else difference > 1e-2
