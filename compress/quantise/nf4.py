"""NormalFloat: 16 levels at quantiles of a normal distribution (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

from compress.rounding import Rounding, Run


class Nf4(Rounding):
    grid = "nf4"

    def __init__(self, *, run: Run = 64) -> None:
        super().__init__(bits=4, run=run)
