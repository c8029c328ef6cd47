"""What is measured of claimed probabilities: by hand, and where nothing is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from rewards.calibration import Bin, measures, reliability, temperature
from rewards.calibration_plot import draw


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_by_hand() -> None:
    """Claims 0.8, 0.8, 0.4 of texts that are right, wrong and wrong."""
    found = measures([logit(0.8), logit(0.8), logit(0.4)], [1, 0, 0])
    assert found["loss"] == pytest.approx(-(math.log(0.8) + math.log(0.2) + math.log(0.6)) / 3)
    assert found["prior"] == pytest.approx(-(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3)
    assert found["gain"] == pytest.approx(found["prior"] - found["loss"])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["auc"] == 0.75  # above one of the wrong ones, level with the other
    assert found["error"] == pytest.approx((2 * abs(0.8 - 0.5) + 0.4) / 3)


def test_the_prior_alone_gains_nothing_and_ranks_nothing() -> None:
    found = measures([logit(0.25)] * 4, [1, 0, 0, 0])
    assert found["gain"] == pytest.approx(0)
    assert found["auc"] == 0.5
    assert found["error"] == pytest.approx(0)


def test_one_kind_of_label_and_infinite_confidence_are_numbers_still() -> None:
    found = measures([40.0, 800.0], [1, 1])
    assert found["prior"] == 0
    assert found["auc"] == 0.5
    assert all(math.isfinite(value) for value in found.values())


def test_soft_labels_have_their_entropy() -> None:
    assert measures([logit(0.3)] * 2, [0.3, 0.3])["gain"] == pytest.approx(0)


def test_bins() -> None:
    assert reliability([logit(0.05), logit(0.95), logit(0.93), 50.0], [0, 1, 0, 1]) == [
        Bin(1, pytest.approx(0.05), 0),
        Bin(3, pytest.approx((0.95 + 0.93 + 1) / 3), pytest.approx(2 / 3)),
    ]


def test_the_temperature_undoes_a_scale() -> None:
    """Labels drawn from σ(z): z·3 claims too much, and T = 3 takes that back; it does not change the order."""
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, 20_000)
    y = (rng.random(20_000) < 1 / (1 + np.exp(-z))).astype(float)
    assert temperature((3 * z).tolist(), y.tolist()) == pytest.approx(3, rel=0.05)
    assert measures((3 * z).tolist(), y.tolist())["error"] > 0.05 > measures(z.tolist(), y.tolist())["error"]


def test_the_plot_is_written(tmp_path: Path) -> None:
    draw(tmp_path / "plot.svg", {"as trained": [Bin(3, 0.2, 0.1), Bin(2, 0.9, 0.8)]})
    assert "as trained" in (tmp_path / "plot.svg").read_text() or (tmp_path / "plot.svg").stat().st_size > 1000
