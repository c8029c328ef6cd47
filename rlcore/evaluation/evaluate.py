"""Sample answers to problems with fixed seeds, judge them, and sum up. Used by `rlcore eval` and during training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
        """accuracy (pass@1), pass@k and maj@k with 95 % intervals; mean length, entropy, truncated and invalid shares."""
        judged = [[s for s in row if isinstance(s, Scored)] for row in self.scores]
        judged = [row for row in judged if row]
        completions = [c for group in self.groups for c in group.completions]
        count = len(completions)
        if not judged:
            reasons = {s.reason for row in self.scores for s in row if isinstance(s, Invalid)}
            raise UserError(f"not one of {count} completions could be graded: {'; '.join(sorted(reasons)[:3])}")
        correct = [[s.value for s in row] for row in judged]
        estimates = {"accuracy": accuracy(correct)}
        if (k := min(map(len, correct))) > 1:
            estimates[f"pass@{k}"] = pass_at_k(correct, k)
            estimates[f"maj@{k}"] = majority_at_k([[s.judged for s in row] for row in judged], correct)
        result: dict[str, float] = {}
        for name, estimate in estimates.items():
            result |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return result | {
            "length": sum(len(c.token_ids) for c in completions) / count,
            "entropy": _entropy(completions),
            "truncated": sum(c.truncated for c in completions) / count,
            "no_answer": sum(isinstance(s, Scored) and not s.judged for row in self.scores for s in row) / count,
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
) -> Evaluation:
    """`samples` completions per problem (one where sampling is greedy: they would all be the same)."""
    samples = 1 if sampling.temperature == 0 else samples
    with watched(f"evaluating at temperature {sampling.temperature:g}", len(problems) * samples) as progress:
        groups = sample_groups(engine, prompter, problems, range(samples), sampling, ("evaluation", seed), progress)
    scores = verify(groups)
    return Evaluation(groups, [scores[i * samples : (i + 1) * samples] for i in range(len(groups))])


def _entropy(completions: Sequence[Completion]) -> float:
    """Nats per token, estimated by the mean negative log-prob of what was sampled."""
    tokens = sum(len(c.logprobs) for c in completions)
    return -sum(sum(c.logprobs) for c in completions) / max(1, tokens)
