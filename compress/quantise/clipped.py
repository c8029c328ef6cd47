"""Round to nearest with the clip of least squared error: of each run, the best of c · max |w| with c from 0.4 to 1."""

from __future__ import annotations

from compress.rounding import Rounding


class Clipped(Rounding):
    grid = "uniform"
    clips = tuple(c / 100 for c in range(100, 39, -5))
