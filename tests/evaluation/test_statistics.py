"""Accuracy statistics against values worked by hand or by enumeration."""

from __future__ import annotations

import itertools

import pytest

from rlcore.evaluation.statistics import accuracy, majority_at_k, pass_at_k, wilson


@pytest.mark.parametrize(
    ("p", "n", "low", "high"),
    [(0.5, 100, 0.4038, 0.5962), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.03, 100, 0.0103, 0.0845)],
)
def test_wilson_interval(p: float, n: int, low: float, high: float) -> None:
    estimate = wilson(p, n)
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_one_sample_per_problem_is_the_plain_wilson_interval() -> None:
    got = accuracy([[1.0], [0.0]] * 50)
    assert got.low == pytest.approx(wilson(0.5, 99).low, abs=1e-3)


def test_samples_that_agree_add_nothing_and_independent_ones_do() -> None:
    """Eight copies of one sample must not narrow the interval; eight independent samples must."""
    single = accuracy([[float(i % 2)] for i in range(100)])
    copied = accuracy([[float(i % 2)] * 8 for i in range(100)])
    independent = accuracy([[1.0, 0.0] * 4 for _ in range(100)])
    assert copied.high - copied.low == pytest.approx(single.high - single.low, rel=0.02)
    assert independent.high - independent.low < 0.5 * (single.high - single.low)


@pytest.mark.parametrize(("row", "k"), [([1, 0, 0, 1], 1), ([1, 0, 0, 1], 2), ([1, 0, 0, 0], 3), ([0, 0], 2), ([1, 1], 1)])
def test_pass_at_k_is_the_mean_over_all_subsets(row: list[float], k: int) -> None:
    subsets = list(itertools.combinations(row, k))
    expected = sum(max(subset) > 0 for subset in subsets) / len(subsets)
    assert pass_at_k([row], k).value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answers", "correct", "value"),
    [
        (["3", "3", "5"], [1, 1, 0], 1.0),
        (["3", "5", "5"], [1, 0, 0], 0.0),
        (["3", "5"], [1, 0], 0.5),  # a tie: each its share
        (["", "", "3"], [0, 0, 1], 1.0),  # no answer has no vote
        (["", ""], [0, 0], 0.0),
    ],
)
def test_majority_vote(answers: list[str], correct: list[float], value: float) -> None:
    assert majority_at_k([answers], [correct]).value == value
