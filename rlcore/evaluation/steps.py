"""How well a reward model finds wrong steps in solutions that people judged: ProcessBench's and PRMBench's scores.

Every step is judged after the steps before it as they stand, and taken for wrong where P(right) is below a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.calibration import measures
from rlcore.data.steps import LabelledSolution


@dataclass(frozen=True)
class JudgedSolution:
    solution: LabelledSolution
    log_odds: Sequence[float]  # of every step


def step_measures(judged: Sequence[JudgedSolution], threshold: float) -> dict[str, float]:
    """`measures` of the steps that have a label, neutral ones left out, and

    prm_score        ½·F1 of right steps + ½·F1 of wrong ones (PRMBench: Song et al. 2025, arXiv 2501.03124)
    process_f1       harmonic mean of the next two (ProcessBench: Zheng et al. 2024, arXiv 2412.06559)
    first_error      of the solutions with a wrong step, the share in which the first one found is the first one
    all_right        of those without, the share in which none is found
    """
    log_odds, labels = labelled_steps(judged)
    bound = math.log(threshold / (1 - threshold))
    taken, right = [z >= bound for z in log_odds], [label == 1 for label in labels]
    found = [(each.solution.first_error, _first_below(each.log_odds, bound)) for each in judged]
    flawed = [first == at for first, at in found if first is not None]
    sound = [at is None for first, at in found if first is None]
    first_error, all_right = _share(flawed), _share(sound)
    return {
        "steps": len(labels),
        "solutions": len(judged),
        **measures(log_odds, labels),
        "prm_score": 0.5 * _f1(taken, right) + 0.5 * _f1([not t for t in taken], [not r for r in right]),
        "process_f1": 2 * first_error * all_right / (first_error + all_right) if first_error + all_right else 0.0,
        "first_error": first_error,
        "all_right": all_right,
    }


def labelled_steps(judged: Sequence[JudgedSolution]) -> tuple[list[float], list[float]]:
    """Log-odds and labels, 1 for right and 0 for wrong, of the steps that have one, neutral ones left out."""
    pairs = [
        (z, float(label == "correct"))
        for each in judged
        for z, label in zip(each.log_odds, each.solution.labels, strict=True)
        if label in ("correct", "wrong")
    ]
    return [z for z, _ in pairs], [label for _, label in pairs]


def _first_below(values: Sequence[float], bound: float) -> int | None:
    return next((i for i, value in enumerate(values) if value < bound), None)


def _share(held: Sequence[bool]) -> float:
    return sum(held) / len(held) if held else 0.0


def _f1(taken: Sequence[bool], true: Sequence[bool]) -> float:
    both = sum(t and r for t, r in zip(taken, true, strict=True))
    return 2 * both / (sum(taken) + sum(true)) if both else 0.0
