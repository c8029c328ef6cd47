"""Which problems a step asks, and the groups it gets back; with dynamic sampling, until enough groups teach something."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rewards.compose import Rewards
from rlcore.batch import GradedBatch, rows
from rlcore.data.mixture import Mixture
from rlcore.prompts import Prompter
from rlcore.protocols import Engine, Progress, no_progress
from rlcore.recipe.schema import RL
from rlcore.types import Completion, Group, Problem, Request, Sampling, Score, Scored, seed_from
from trainers.groups import uniform


@dataclass(frozen=True)
class Rollouts:
    groups: list[Group]
    verified: list[Score] | None  # the verifiable component's scores, where sampling already needed them


class Sampler:
    def __init__(self, recipe: RL, problems: Mixture, prompter: Prompter, engine: Engine, rewards: Rewards) -> None:
        self.problems, self.prompter, self.engine, self.rewards = problems, prompter, engine, rewards
        self.spec, self.dynamic, self.seed = recipe.rollout, recipe.algorithm.dynamic_sampling, recipe.seed

    def collect(self, step: int) -> Rollouts:
        """The groups of a step: one round of `prompts_per_step`, or rounds until that many have mixed raw accuracy."""
        wanted = self.spec.prompts_per_step
        drawn: Counter[str] = Counter()
        if self.dynamic is None:
            return Rollouts(self._round(step, wanted, drawn), None)
        groups: list[Group] = []
        verified: list[Score] = []
        for _ in range(self.dynamic.max_rounds):
            fresh = self._round(step, wanted, drawn)
            groups += fresh
            verified += self.rewards.verify(fresh)
            if sum(mixed(groups, verified)) >= wanted:
                break
        return Rollouts(groups, verified)

    def select(self, batch: GradedBatch) -> GradedBatch:
        """What of the graded batch goes into training: everything, or the first `prompts_per_step` groups of mixed accuracy."""
        if self.dynamic is None:
            return batch
        assert batch.accuracy is not None  # `trainers.plan` refuses dynamic sampling where nothing is verified
        informative = (~uniform(batch.accuracy, batch.group)).nonzero()[:, 0]
        chosen = list(dict.fromkeys(batch.group[informative].tolist()))[: self.spec.prompts_per_step]
        return rows(batch, torch.isin(batch.group, torch.tensor(chosen, dtype=torch.long)).nonzero()[:, 0].tolist())

    def state(self) -> Any:
        return self.problems.state()

    def restore(self, state: Any) -> None:
        self.problems.restore(state)

    def _round(self, step: int, count: int, drawn: Counter[str]) -> list[Group]:
        problems, numbers = self.problems.next(count), range(self.spec.samples)
        return sample_groups(self.engine, self.prompter, problems, numbers, self.spec.sampling, (self.seed, step), drawn=drawn)


def sample_groups(
    engine: Engine,
    prompter: Prompter,
    problems: Sequence[Problem],
    samples: Sequence[int],
    sampling: Sampling,
    seed: tuple[object, ...],
    progress: Progress = no_progress,
    drawn: Counter[str] | None = None,
) -> list[Group]:
    """A completion of each problem for each sample number; its random numbers depend on `seed`, problem and number only.

    `drawn` counts how often each problem was sampled with this seed; it is updated. A problem that comes again gets the numbers
    after those, and so other tokens: exact copies would count twice.
    """
    drawn = Counter() if drawn is None else drawn
    requests = []
    for problem in problems:
        prompt_ids, first = prompter.render(problem), drawn[problem.id] * len(samples)
        requests += [
            Request(problem.id, first + k, seed_from(*seed, problem.id, first + k), prompt_ids, sampling) for k in samples
        ]
        drawn[problem.id] += 1
    completions: list[Completion] = engine.generate(requests, progress)
    size = len(samples)
    return [Group(problem, completions[i * size : (i + 1) * size]) for i, problem in enumerate(problems)]


def mixed(groups: Sequence[Group], verified: Sequence[Score]) -> list[bool]:
    """Whether each group has both right and wrong completions among those that could be judged."""
    scores = iter(verified)
    values = [[next(scores) for _ in group.completions] for group in groups]
    return [len({s.value for s in row if isinstance(s, Scored)}) > 1 for row in values]
