"""Student's 95 % interval of a mean over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

LEVEL = 0.95


def interval(values: Sequence[float | None]) -> tuple[float, float] | None:
    """mean ± t(n − 1) · s / √n, two-sided, for n values with the standard deviation s (Student 1908).

    For 1, 2, 3: 2 ± 4.3027 · 1 / √3 = [−0.48, 4.48]. Equal values make an interval of no width. None for fewer than two values,
    and where one is None: what is missing is not missing by chance.
    """
    known = [value for value in values if value is not None]
    if len(known) < max(2, len(values)):
        return None
    mean = statistics.fmean(known)
    reach = quantile(len(known) - 1) * statistics.stdev(known) / math.sqrt(len(known))
    return mean - reach, mean + reach


def quantile(freedom: int) -> float:
    """The t with P(|T| ≤ t) = 0.95 for so many degrees of freedom, by bisection: 12.7062, 4.3027, 3.1824 for 1, 2, 3."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < LEVEL else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| ≤ t) for t = √ν · tan θ, a finite sum for whole degrees of freedom ν (Abramowitz and Stegun 1964,
    26.7.3 and 26.7.4):

    ν odd     2/π · (θ + sin θ · (cos θ + 2/3 · cos³θ + … up to cos^(ν − 2) θ))       ν = 1: 2θ/π
    ν even    sin θ · (1 + 1/2 · cos²θ + 1·3/(2·4) · cos⁴θ + … up to cos^(ν − 2) θ)
    """
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
