"""The fused sampler: the right distribution, the right log-probs, and random numbers that belong to the request."""

from __future__ import annotations

import pytest
import torch

from rlcore.types import Sampling
from rollout.sampling import SamplingRows, sample, truncate, uniforms

CPU = torch.device("cpu")


def distribution(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The distribution by the definition of each truncation, one row, no sorting tricks."""
    p = (logits / sampling.temperature).softmax(-1)
    if sampling.top_k:
        p = torch.where(p >= p.topk(sampling.top_k).values[-1], p, 0.0)
        p = p / p.sum()
    if sampling.top_p < 1:
        mass_above = torch.tensor([p[p > value].sum() for value in p])
        p = torch.where(mass_above < sampling.top_p, p, 0.0)
        p = p / p.sum()
    p = torch.where(p >= sampling.min_p * p.max(), p, 0.0)
    return p / p.sum()


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


def test_greedy_takes_the_mode_with_certainty() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    tokens, logprobs = sample(logits, SamplingRows.of([Sampling(temperature=0)] * 2, 3, CPU), torch.tensor([0.99, 0.01]))
    assert tokens.tolist() == [1, 0]
    assert logprobs.tolist() == [0.0, 0.0]


def test_the_mode_survives_every_truncation() -> None:
    sampling = Sampling(top_p=1e-6, top_k=1, min_p=1.0)
    kept = truncate(torch.randn(4, 9), SamplingRows.of([sampling] * 4, 9, CPU))
    assert (kept > -torch.inf).sum(1).tolist() == [1, 1, 1, 1]


def test_rows_with_different_settings_do_not_touch_each_other() -> None:
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(2))
    settings = [Sampling(temperature=0.5), Sampling(top_p=0.5), Sampling()]
    u = torch.tensor([0.3, 0.6, 0.9])
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
