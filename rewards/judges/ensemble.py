"""Several reward models as one, by the probabilities p_1 … p_M that they give a step of being right.

    mean              Σ p_m / M
    min               min p_m                     (WCO: Coste et al. 2023, arXiv 2310.02743)
    median            the middle one, or the mean of the two in the middle
    mean_minus_std    Σ p_m / M − λ · s           s = √(Σ (p_m − mean)² / M), the members' disagreement

Whatever is combined, s of every step is told beside it: a process reward reports its mean as `disagreement`. (Coste et al. take
λ·s², and both papers combine scores of whole answers without bounds; here it is probabilities of steps.) The result is kept
within 1e-9 of 0 and 1.

What this does not mend: errors that the members share. All may pay for length or for a format, and then they agree. Members of
different pre-training help more than those that differ in fine-tuning alone, and those more than one model (Eisenstein et al.
2023, "Helping or Herding?", arXiv 2312.09244). Worked: 0.9, 0.6, 0.3 has mean and median 0.6, min 0.3, s 0.2449, and with λ = 1
mean_minus_std 0.3551.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rewards.judge import Judge, Judgement, named_judge, probability
from rewards.judged_text import Asked
from rlcore.errors import UserError
from rlcore.protocols import Progress, no_progress
from rlcore.recipe.schema import NonNegativeFloat

Combine = Literal["mean", "min", "median", "mean_minus_std"]
EDGE = 1e-9


class Ensemble(Judge):
    """`judges`: each a run folder, or a judge by name with its options; all are asked everything. `penalty`: λ, of
    mean_minus_std."""

    def __init__(
        self, *, judges: Sequence[str | Mapping[str, Any]], combine: Combine = "mean", penalty: NonNegativeFloat = 1.0
    ) -> None:
        if len(judges) < 2:
            raise UserError("ensemble: give two judges or more, one alone has nobody to disagree with")
        self._members = [named_judge(spec)() for spec in judges]
        self._combine, self._penalty = combine, penalty
        if len({member.of_solutions for member in self._members}) > 1:
            raise UserError("ensemble: some of these judge steps and others whole solutions, which is not the same question")
        self.of_solutions = self._members[0].of_solutions
        ends = sorted({member.steps_end_with for member in self._members if member.steps_end_with is not None})
        if len(ends) > 1:
            raise UserError(f"ensemble: these learned steps that end differently, with {', '.join(map(repr, ends))}")
        self.steps_end_with = ends[0] if ends else None
        self.trained_on = frozenset().union(*(member.trained_on for member in self._members))

    def log_odds(self, asked: Sequence[Asked], progress: Progress = no_progress) -> list[float | None]:
        return self.judge(asked, progress).log_odds

    def judge(self, asked: Sequence[Asked], progress: Progress = no_progress) -> Judgement:
        """`progress` hears the last member."""
        first = [member.log_odds(asked) for member in self._members[:-1]]
        answers = zip(*first, self._members[-1].log_odds(asked, progress), strict=True)
        log_odds: list[float | None] = []
        disagreement = []
        for answer in answers:
            read = [probability(z) for z in answer if z is not None]
            whole = len(read) == len(answer)
            log_odds.append(_log_odds(_combined(self._combine, read, self._penalty)) if whole else None)
            disagreement.append(statistics.pstdev(read) if whole else math.nan)
        return Judgement(log_odds, {"disagreement": disagreement})

    @property
    def weights(self) -> int:
        return sum(member.weights for member in self._members)

    def load(self) -> None:
        for member in self._members:
            member.load()


def _combined(combine: Combine, probabilities: Sequence[float], penalty: float) -> float:
    match combine:
        case "mean":
            return statistics.fmean(probabilities)
        case "min":
            return min(probabilities)
        case "median":
            return statistics.median(probabilities)
        case "mean_minus_std":
            return statistics.fmean(probabilities) - penalty * statistics.pstdev(probabilities)


def _log_odds(p: float) -> float:
    bounded = min(max(p, EDGE), 1 - EDGE)
    return math.log(bounded) - math.log1p(-bounded)
