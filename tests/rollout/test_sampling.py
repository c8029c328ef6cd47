"""The fused sampler: the right distribution, the right log-probs, and random numbers that belong to the request."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rlcore.types import Sampling
from rollout.sampling import SamplingRows, sample, truncate, uniforms

CPU = torch.device("cpu")


def distribution(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The distribution by the definition of each truncation, one row, no sorting tricks."""
    p = (logits / sampling.temperature).softmax(-1)
    if sampling.top_h < 1:
        p = bounded(p, sampling.top_h, sampling.top_h_normalized)
    if sampling.top_k:
        p = torch.where(p >= p.topk(sampling.top_k).values[-1], p, 0.0)
        p = p / p.sum()
    if sampling.top_p < 1:
        mass_above = torch.tensor([p[p > value].sum() for value in p])
        p = torch.where(mass_above < sampling.top_p, p, 0.0)
        p = p / p.sum()
    p = torch.where(p >= sampling.min_p * p.max(), p, 0.0)
    return p / p.sum()


def entropy(p: torch.Tensor) -> float:
    return -sum(x * math.log(x) for x in p.tolist() if x > 0)


def bounded(p: torch.Tensor, alpha: float, normalized: bool) -> torch.Tensor:
    """Token by token, the most likely first, as the paper's greedy algorithm goes, or its authors' code."""
    ranked = p.sort(descending=True)
    bound = alpha * entropy(p if normalized else ranked.values[:100])
    taken = 1
    while taken < len(p):
        some = ranked.values[: taken + 1]
        if entropy(some / some.sum() if normalized else some) > bound:
            break
        taken += 1
    left = torch.zeros_like(p)
    left[ranked.indices[:taken]] = ranked.values[:taken]
    return left / left.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(temperature=1.3),
        Sampling(top_p=0.7),
        Sampling(top_k=3),
        Sampling(min_p=0.3),
        Sampling(temperature=0.8, top_k=5, top_p=0.9, min_p=0.1),
        Sampling(temperature=1.5, top_h=0.4),
        Sampling(temperature=1.5, top_h=0.4, top_h_normalized=True),
        Sampling(temperature=1.5, top_h=0.9, top_k=5, top_p=0.8, min_p=0.1),
    ],
)
def test_tokens_and_logprobs_follow_the_distribution(sampling: Sampling) -> None:
    """Log-probs are the definition's to 1e-5; frequencies over an even grid of u are the definition's to the grid's width."""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1)) * 2
    grid = 20_000
    rows = SamplingRows.of([sampling] * grid, 12, CPU)
    u = (torch.arange(grid) + 0.5) / grid
    tokens, logprobs = sample(logits.expand(grid, -1), rows, u)
    expected = distribution(logits, sampling)
    frequencies = torch.bincount(tokens, minlength=12) / grid
    assert (frequencies - expected).abs().max() < 2 / grid
    torch.testing.assert_close(logprobs, expected.log()[tokens], atol=1e-5, rtol=0)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("vocabulary", [40, 300])
def test_top_h_takes_as_many_tokens_as_the_rule_does_one_by_one(normalized: bool, vocabulary: int) -> None:
    """Of rows from nearly even to nearly certain, each with its α, in one batch with one that is not bounded at all. Of 300
    tokens the authors' code searches 100."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, vocabulary, generator=generator) * torch.linspace(0.01, 8, 40)[:, None]
    alphas = [1.0, *torch.linspace(0.05, 0.95, 39).tolist()]
    settings = [Sampling(top_h=alpha, top_h_normalized=normalized and alpha < 1) for alpha in alphas]
    left = truncate(logits, SamplingRows.of(settings, vocabulary, CPU)).softmax(-1)
    for row, p, alpha in zip(left[1:], logits[1:].softmax(-1), alphas[1:], strict=True):
        torch.testing.assert_close(row, bounded(p, alpha, normalized), atol=1e-6, rtol=0)
    assert (left[0] > 0).all()
    assert 1 in (left > 0).sum(-1)


def test_top_h_by_hand() -> None:
    """Halves, a quarter, two eighths: H is 1.75 bits, h is 0.5, 1, 1.375, 1.75, and renormalised 0, 0.918, 1.379, 1.75. Of
    α = 0.6, so 1.05 bits, both rules take two, of 0.55 only the code's (0.9625 bits) does not."""
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()

    def left(**given: Any) -> int:
        return int((truncate(logits, SamplingRows.of([Sampling(**given)], 4, CPU)) > -torch.inf).sum())

    assert (left(top_h=0.6), left(top_h=0.6, top_h_normalized=True)) == (2, 2)
    assert (left(top_h=0.55), left(top_h=0.55, top_h_normalized=True)) == (1, 2)
    assert left(top_h=0.01) == left(top_h=0.01, top_h_normalized=True) == 1


def test_greedy_takes_the_mode_with_certainty() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    tokens, logprobs = sample(logits, SamplingRows.of([Sampling(temperature=0)] * 2, 3, CPU), torch.tensor([0.99, 0.01]))
    assert tokens.tolist() == [1, 0]
    assert logprobs.tolist() == [0.0, 0.0]


def test_the_mode_survives_every_truncation() -> None:
    sampling = Sampling(top_h=1e-6, top_p=1e-6, top_k=1, min_p=1.0)
    kept = truncate(torch.randn(4, 9), SamplingRows.of([sampling] * 4, 9, CPU))
    assert (kept > -torch.inf).sum(1).tolist() == [1, 1, 1, 1]


def test_rows_with_different_settings_do_not_touch_each_other() -> None:
    logits = torch.randn(4, 12, generator=torch.Generator().manual_seed(2))
    settings = [Sampling(temperature=0.5), Sampling(top_p=0.5), Sampling(top_h=0.3), Sampling()]
    u = torch.tensor([0.3, 0.6, 0.8, 0.9])
    together = sample(logits, SamplingRows.of(settings, 12, CPU), u)
    for i, setting in enumerate(settings):
        alone = sample(logits[i : i + 1], SamplingRows.of([setting], 12, CPU), u[i : i + 1])
        assert together[0][i] == alone[0][0]
        torch.testing.assert_close(together[1][i], alone[1][0])


def test_the_largest_uniform_never_draws_an_excluded_token() -> None:
    logits = torch.tensor([[5.0, 4.0] + [-20.0] * 500])
    top = torch.tensor([float(uniforms(0, 1).max() * 0 + (1 - 2**-22))])
    tokens, logprobs = sample(logits, SamplingRows.of([Sampling(top_k=2)], 502, CPU), top)
    assert tokens[0] in (0, 1)
    assert torch.isfinite(logprobs).all()


def test_random_numbers_belong_to_the_seed_and_position() -> None:
    assert (uniforms(7, 10) == uniforms(7, 20)[:10]).all()
    assert (uniforms(7, 10) != uniforms(8, 10)).any()
