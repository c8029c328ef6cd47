"""How well probabilities say what happens: cross-entropy beside that of knowing nothing, ranking, calibration.

All take log-odds z and labels y in [0, 1], one each; σ(z) is the probability that is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata

BINS = 10
TEMPERATURES = (0.5, 20.0)  # a small set may be told apart without an error, and no probability is as sure as that


def measures(log_odds: Sequence[float], labels: Sequence[float]) -> dict[str, float]:
    """loss         cross-entropy, nats
    prior        that of always claiming the labels' mean: their entropy
    gain         prior − loss: what is known of a text beyond that, nats
    accuracy     share of the right side of ½
    auc          the chance that a right one is above a wrong one, ties half; ½ where there is only one kind
    error        expected calibration error over BINS bins of probability (Naeini et al. 2015)
    """
    z, y = np.asarray(log_odds, float), np.asarray(labels, float)
    loss, prior = _cross_entropy(z, y), _entropy(float(y.mean()))
    return {
        "loss": loss,
        "prior": prior,
        "gain": prior - loss,
        "accuracy": float(((z > 0) == (y > 0.5)).mean()),
        "auc": _auc(z, y > 0.5),
        "error": sum(b.count / len(z) * abs(b.claimed - b.right) for b in reliability(log_odds, labels)),
    }


@dataclass(frozen=True)
class Bin:
    """The texts whose probability lies in one tenth: how many, what was claimed of them and what was right, on average."""

    count: int
    claimed: float
    right: float


def reliability(log_odds: Sequence[float], labels: Sequence[float]) -> list[Bin]:
    """The bins that hold any, from low to high."""
    p, y = _sigmoid(np.asarray(log_odds, float)), np.asarray(labels, float)
    where = np.minimum((p * BINS).astype(int), BINS - 1)
    held = [where == i for i in range(BINS)]
    return [Bin(int(h.sum()), float(p[h].mean()), float(y[h].mean())) for h in held if h.any()]


def temperature(log_odds: Sequence[float], labels: Sequence[float]) -> float:
    """T of least cross-entropy of z/T (Guo et al. 2017, arXiv 1706.04599), within TEMPERATURES."""
    z, y = np.asarray(log_odds, float), np.asarray(labels, float)
    found = minimize_scalar(
        lambda log_t: _cross_entropy(z / math.exp(log_t), y), bounds=tuple(map(math.log, TEMPERATURES)), method="bounded"
    )
    return math.exp(found.x)


def _cross_entropy(z: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float((np.logaddexp(0, z) - y * z).mean())


def _entropy(p: float) -> float:
    return sum(-q * math.log(q) for q in (p, 1 - p) if q)


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(z / 2))


def _auc(z: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    n, m = int(right.sum()), int((~right).sum())
    return float((rankdata(z)[right].sum() - n * (n + 1) / 2) / (n * m)) if n and m else 0.5
