"""ProcessBench's and PRMBench's scores by hand."""

from __future__ import annotations

import pytest

from rlcore.data.steps import LabelledSolution, StepLabel
from rlcore.evaluation.steps import JudgedSolution, step_measures


def judged(log_odds: list[float], *labels: StepLabel | None) -> JudgedSolution:
    steps = tuple(str(i) for i in range(len(labels)))
    return JudgedSolution(LabelledSolution("s", "Q", None, steps, labels), log_odds)


FOUND = judged([1.0, -1, 2], "correct", "wrong", "wrong")
TOO_EARLY = judged([-1.0, -1], "correct", "wrong")
SOUND = judged([1.0, 1], "correct", "correct")
SUSPECTED = judged([1.0, -1], "correct", "correct")


def test_process_f1_by_hand() -> None:
    found = step_measures([FOUND, TOO_EARLY, SOUND, SOUND, SUSPECTED], 0.5)
    assert found["first_error"] == 0.5
    assert found["all_right"] == pytest.approx(2 / 3)
    assert found["process_f1"] == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))


def test_prm_score_by_hand() -> None:
    """Of three right steps two are taken for right, of three wrong ones two for wrong: F1 is 4/6 for both."""
    found = step_measures([FOUND, TOO_EARLY, judged([1.0], "correct")], 0.5)
    assert found["prm_score"] == pytest.approx(0.5 * 4 / 6 + 0.5 * 4 / 6)
    assert found["steps"] == 6


def test_a_higher_threshold_suspects_more() -> None:
    assert step_measures([SOUND], 0.5)["all_right"] == 1
    assert step_measures([SOUND], 0.9)["all_right"] == 0


def test_steps_that_nobody_judged_count_for_nothing_but_the_first_that_is_suspected() -> None:
    """As in ProcessBench, where what comes after the first error has no label."""
    stopped = judged([1.0, -1, -5], "correct", "wrong", None)
    found = step_measures([stopped, judged([1.0, 0, 2], "correct", "neutral", "correct")], 0.5)
    assert found["steps"] == 4
    assert found["first_error"] == 1


def test_without_errors_there_is_no_harmonic_mean() -> None:
    assert step_measures([SOUND], 0.5)["process_f1"] == 0
