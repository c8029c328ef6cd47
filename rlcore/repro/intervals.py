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
    from scipy.stats import t

    known = [value for value in values if value is not None]
    if len(known) < max(2, len(values)):
        return None
    mean = statistics.fmean(known)
    reach = float(t.ppf((1 + LEVEL) / 2, len(known) - 1)) * statistics.stdev(known) / math.sqrt(len(known))
    return mean - reach, mean + reach
