"""Sample answers to problems with fixed seeds, judge them, and sum up. Used by `rlcore eval` and during training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rewards.compose import refuse_broken
from rlcore.errors import UserError
from rlcore.evaluation.statistics import accuracy, majority_at_k, pass_at_k
from rlcore.prompts import Prompter
from rlcore.protocols import Engine
from rlcore.run.console import watched
from rlcore.types import Completion, Group, Invalid, Problem, Sampling, Score, Scored
from trainers.sampler import sample_groups

Verify = Callable[[Sequence[Group]], list[Score]]


@dataclass(frozen=True)
class Evaluation:
    """The groups with their scores, in order."""

    groups: list[Group]
    scores: list[list[Score]]

    def summary(self) -> dict[str, float]:
        """accuracy (pass@1), pass@k and maj@k with 95 % intervals; mean length, entropy; truncated, no_answer, invalid shares.

        k is the number of samples asked, over the problems of which all k were judged; `problems_fully_judged` says how many
        those are where it is not every one. A reward that does not tell which answers it judged gets no maj@k and no_answer.
        """
        judged = [[s for s in row if isinstance(s, Scored)] for row in self.scores]
        judged = [row for row in judged if row]
        completions = [c for group in self.groups for c in group.completions]
        count = len(completions)
        if not judged:
            reasons = {s.reason for row in self.scores for s in row if isinstance(s, Invalid)}
            raise UserError(f"not one of {count} completions could be graded: {'; '.join(sorted(reasons)[:3])}")
        estimates = {"accuracy": accuracy([[s.value for s in row] for row in judged])}
        k = len(self.scores[0])
        whole = [row for row in judged if len(row) == k]
        tells_answers = any(s.judged or s.unanswered for row in judged for s in row)
        if k > 1 and whole:
            correct = [[s.value for s in row] for row in whole]
            estimates[f"pass@{k}"] = pass_at_k(correct, k)
            if tells_answers:
                estimates[f"maj@{k}"] = majority_at_k([[s.judged for s in row] for row in whole], correct)
        result: dict[str, float] = {}
        for name, estimate in estimates.items():
            result |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        if tells_answers:
            result["no_answer"] = sum(s.unanswered for row in judged for s in row) / count
        if k > 1 and len(whole) < len(self.scores):
            result["problems_fully_judged"] = len(whole)
        return result | {
            "length": sum(len(c.token_ids) for c in completions) / count,
            "entropy": _entropy(completions),
            "truncated": sum(c.truncated for c in completions) / count,
            "invalid": sum(isinstance(s, Invalid) for row in self.scores for s in row) / count,
            "problems": len(self.groups),
            "samples": count,
        }


def evaluate(
    engine: Engine,
    prompter: Prompter,
    problems: Sequence[Problem],
    verify: Verify,
    samples: int,
    sampling: Sampling,
    seed: int,
    max_invalid_fraction: float,
) -> Evaluation:
    """`samples` completions per problem (one where sampling is greedy: they would all be the same). Raises UserError, with the
    reasons, where a larger share of them than `max_invalid_fraction` could not be judged."""
    samples = 1 if sampling.temperature == 0 else samples
    with watched(f"evaluating at temperature {sampling.temperature:g}", len(problems) * samples) as progress:
        groups = sample_groups(engine, prompter, problems, range(samples), sampling, ("evaluation", seed), progress)
    scores = verify(groups)
    refuse_broken([scores], max_invalid_fraction)
    return Evaluation(groups, [scores[i * samples : (i + 1) * samples] for i in range(len(groups))])


def _entropy(completions: Sequence[Completion]) -> float:
    """Nats per token, estimated by the mean negative log-prob of what was sampled."""
    tokens = sum(len(c.logprobs) for c in completions)
    return -sum(sum(c.logprobs) for c in completions) / max(1, tokens)
