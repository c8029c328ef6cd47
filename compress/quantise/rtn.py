"""Round to nearest: uniform levels between ±max |w| of each run. The baseline of every quantiser."""

from __future__ import annotations

from compress.rounding import Rounding


class Rtn(Rounding):
    grid = "uniform"
