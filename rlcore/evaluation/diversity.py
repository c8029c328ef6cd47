"""How much the solutions that were sampled of a problem differ.

distinct            different texts among them, mean over problems
distinct_correct    those that are right
"""

from __future__ import annotations

from statistics import fmean

from rlcore.evaluation.evaluate import Evaluation
from rlcore.types import Scored


def diversity(evaluation: Evaluation) -> dict[str, float]:
    texts, correct = [], []
    for group, scores in zip(evaluation.groups, evaluation.scores, strict=True):
        judged = list(zip((completion.text for completion in group.completions), scores, strict=True))
        texts.append(len({text for text, _ in judged}))
        correct.append(len({text for text, score in judged if isinstance(score, Scored) and score.value > 0}))
    return {"distinct": fmean(texts), "distinct_correct": fmean(correct)}
