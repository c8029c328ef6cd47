"""Early rejection (arXiv 2508.01969): solutions that look bad when they have just begun are not finished.

Of a problem M solutions are begun, each is scored as far as it goes after some tokens or steps, the share `keep` of them that
scores best is finished, and the best of those is the answer. Here every solution of a pool was finished, so that what is saved
can be set beside what is lost:

    saved = tokens of what is rejected, after the cut / tokens of all solutions
    lost  = accuracy of the best of all − accuracy of the best of those that were kept

The control is not to begin as many: best-of-n for n < M saves (M − n)/M.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import spearmanr
from transformers import PreTrainedTokenizerBase

from rewards.judge import Judge
from rlcore.evaluation.best_of_n import Pool, expected_best, solution_scores, steps_of
from rlcore.evaluation.statistics import Estimate, Z, over_problems
from rlcore.protocols import Progress, no_progress
from rlcore.types import Completion

Unit = Literal["tokens", "steps"]


@dataclass(frozen=True)
class Rejection:
    """What came of one way to reject: after so many tokens or steps, all but a share."""

    after: int
    keep: float
    accuracy: Estimate
    saved: float
    lost: Estimate  # of the same problems: its interval is that of the mean difference
    correlation: float  # Spearman's, of a solution's score at the cut and at its end


def early_rejection(
    pools: Sequence[Pool],
    judge: Judge,
    tokenizer: PreTrainedTokenizerBase,
    *,
    after: Sequence[int],
    unit: Unit,
    keep: Sequence[float],
    separator: str,
    aggregate: str,
    progress: Progress = no_progress,
) -> tuple[list[list[float]], list[Rejection]]:
    """The scores of the finished solutions, pool by pool, and a Rejection for each cut and share. `progress` hears how many
    texts are judged."""
    flat = [(pool.problem.prompt, completion) for pool in pools for completion in pool.completions]
    size = len(pools[0].completions)

    def scored(ends: Sequence[int]) -> list[list[float]]:
        texts = [tokenizer.decode(c.token_ids[:end], skip_special_tokens=True) for (_, c), end in zip(flat, ends, strict=True)]
        asked = [(problem, steps_of(text, separator)) for (problem, _), text in zip(flat, texts, strict=True)]
        found = solution_scores(judge, asked, aggregate, progress)
        return [found[i : i + size] for i in range(0, len(found), size)]

    final = scored([len(completion.token_ids) for _, completion in flat])
    found = []
    for cut in after:
        ends = [cut_at(completion, cut, unit, separator, tokenizer) for _, completion in flat]
        partial = scored(ends)
        spent = [ends[i : i + size] for i in range(0, len(ends), size)]
        found += [rejected(pools, partial, final, spent, cut, share) for share in keep]
    return final, found


def rejected(
    pools: Sequence[Pool],
    partial: Sequence[Sequence[float]],
    final: Sequence[Sequence[float]],
    spent: Sequence[Sequence[int]],
    after: int,
    keep: float,
) -> Rejection:
    """From the scores of each pool's solutions at the cut and at the end, and the tokens before the cut. At least one solution
    is kept; of those that score alike at the cut the first sampled."""
    right, differences, saved, total = [], [], 0, 0
    for pool, early, late, tokens in zip(pools, partial, final, spent, strict=True):
        order = sorted(range(len(early)), key=lambda i: -early[i])
        kept = order[: max(1, math.ceil(keep * len(order)))]
        lengths = [len(completion.token_ids) for completion in pool.completions]
        saved += sum(lengths[i] - tokens[i] for i in order[len(kept) :])
        total += sum(lengths)
        right.append(expected_best([late[i] for i in kept], [pool.correct[i] for i in kept], len(kept)))
        differences.append(expected_best(late, pool.correct, len(late)) - right[-1])
    flat = [[score for row in scores for score in row] for scores in (partial, final)]
    correlation = float(spearmanr(*flat).statistic) if all(len(set(scores)) > 1 for scores in flat) else math.nan
    return Rejection(after, keep, over_problems(right, len(right)), saved / max(1, total), _mean(differences), correlation)


def cut_at(completion: Completion, count: int, unit: Unit, separator: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """After how many tokens a completion has `count` tokens, or has ended `count` steps; all of them where it has fewer."""
    ids = completion.token_ids
    if unit == "tokens":
        return min(count, len(ids))
    return bisect.bisect_left(range(len(ids)), count, key=lambda end: tokenizer.decode(ids[:end]).count(separator))


def _mean(differences: Sequence[float]) -> Estimate:
    mean = statistics.fmean(differences)
    reach = Z * statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    return Estimate(mean, mean - reach, mean + reach)
