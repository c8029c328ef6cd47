"""The groups that a step trains on, and how far sampling may run ahead of training. Which problems they are of is chosen by
`trainers.problems`, and, where the recipe has a budget, how many samples each problem gets by `trainers.budget`.

This is where the modes differ, and the loop knows nothing of it. With staleness η, rounds of `prompts_per_step` problems are
handed to the engine while

    rounds begun ≤ version + η + 1        (capacity)

where `version` is the number of steps trained. A step takes its groups from the oldest version that any was begun at, those
that are whole first, and waits where they are too few. A group that is begun at version v and trained in step s, which updates
version s − 1, so has staleness s − 1 − v ≤ η: v + η + 1 rounds are begun by then, as many as there are steps to train them in,
and each younger group that overtook one of them would push another over the cap. The count of rounds is checkpointed with the
problems that were begun and not trained on: a resumed run begins those again first, under the bound of its own mode.

    synchronous     η = 0: a step begins its own round and waits for it
    one-step-off    η = 1: the next round is sampled while this one is learned from, and is whole before the weights change
    asynchronous    any η: a step takes what is done; what is under way when the weights change is interrupted, and goes on
                    from its tokens, which keep their log-probs and versions (partial rollouts, as in AReaL and Kimi k1.5)
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rewards.compose import Rewards
from rlcore.batch import GradedBatch, rows
from rlcore.data.mixture import Mixture
from rlcore.length_budget import budget_of, for_training
from rlcore.prompts import Prompter
from rlcore.protocols import Engine, Progress, no_progress
from rlcore.recipe.schema import RL
from rlcore.run.metrics import Max, Mean, Metrics
from rlcore.types import Completion, Group, Problem, Request, Sampling, Score, Scored, seed_from
from rollout.tree import computed_tokens
from trainers.algorithm import needing
from trainers.budget import second_stage
from trainers.groups import uniform
from trainers.problems import Problems, success_rates


@dataclass(frozen=True)
class Rollouts:
    groups: list[Group]
    verified: list[Score] | None  # the verifiable component's scores, where sampling already needed them
    metrics: Metrics


_Key = tuple[str, int]
"""What names a group that is begun: its problem's id, and the number of the first of its samples."""


@dataclass(eq=False)
class _Begun:
    """A group that is being sampled."""

    problem: Problem
    number: int  # of all groups of the run: with the sample it decides the random numbers
    step: int  # that began it, for the first time: with the problem it decides the length budget
    version: int  # of the weights when it was begun
    done: dict[int, Completion] = field(default_factory=dict)  # by sample


class Sampler:
    def __init__(self, recipe: RL, problems: Mixture, prompter: Prompter, engine: Engine, rewards: Rewards) -> None:
        self.prompter, self.engine, self.rewards = prompter, engine, rewards
        self.spec, self.mode, self.seed, self.steps = recipe.rollout, recipe.mode, recipe.seed, recipe.steps
        self.dynamic, self.budget = recipe.algorithm.dynamic_sampling, recipe.algorithm.budget
        self.length_budget = recipe.length_budget
        self.problems = Problems(problems, recipe.algorithm.curriculum, recipe.algorithm.replay)
        self.greedy = bool(needing(recipe, "greedy"))  # whether each group has a greedy completion too, the last of its samples
        self._samples = self.budget.pilot if self.budget else self.spec.samples  # that a group begins with
        self._size = self._samples + self.greedy  # requests of a group
        self._rounds = 0  # begun so far
        self._extra = 0  # of these, beyond one a step: what dynamic sampling asked for
        self._groups = 0  # begun so far
        self._begun: dict[_Key, _Begun] = {}  # and not trained on, the oldest first
        self._whole: Counter[int] = Counter()  # how many of them have all their completions, by the version they began at
        self._taken: set[_Key] = set()  # by the step that is being trained
        self._names: list[str] = []  # of the problems of its groups
        self._again: list[tuple[Problem, int, int]] = []  # what a run that was resumed had begun: as `_next` has it
        self._thread = ThreadPoolExecutor(1)
        self._background: Future[None] | None = None
        self._held: list[Request] = []  # to be handed to the engine, with what was sampled of them before

    # -- the loop's verbs ------------------------------------------------------------------------------------------------

    def collect(self, step: int) -> Rollouts:
        """The groups of a step: `prompts_per_step`, or rounds of so many until that many have mixed raw accuracy."""
        self._taken.clear()
        groups, verified, spent, rounds = self._round(step), None, Metrics(), 1
        if self.budget is not None:
            groups, verified, spent = second_stage(groups, self.budget, self.spec.samples, self.engine, self.rewards)
        if self.dynamic is not None:
            verified = self.rewards.verify(groups)
            for _ in range(self.dynamic.max_rounds - 1):
                if sum(mixed(groups, verified)) >= self.spec.prompts_per_step:
                    break
                self._extra, rounds = self._extra + 1, rounds + 1
                fresh = self._round(step)
                groups += fresh
                verified += self.rewards.verify(fresh)
            useful = Mean(sum(mixed(groups, verified)), len(groups))
            spent |= {"groups/mixed": useful, "groups/rounds": Mean(rounds, 1)}
        self._names = [group.problem.id for group in groups]
        told = self._staleness(groups, step) | self._shared(groups) | self._budgets(groups)
        return Rollouts(groups, verified, told | spent | self.problems.report())

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Within it, what is under way goes on in the background; `pause` waits for that to end."""
        over = threading.Event()

        def work() -> None:
            while self.engine.busy and not over.is_set():
                self._take_in(self.engine.poll())

        self._background = self._thread.submit(work)
        try:
            yield
        except BaseException:
            over.set()
            wait([self._background])
            raise
        over.set()

    def pause(self) -> None:
        """Leave nothing under way, so that the weights can change. Raises what the engine raised in the background."""
        if self._background is not None:
            self._background.result()
            self._background = None
        if self.mode.partial:
            self._take_in(self.engine.interrupt())
        while self.engine.busy:
            self._take_in(self.engine.poll())

    def select(self, batch: GradedBatch) -> GradedBatch:
        """What of the graded batch goes into training: everything, or the first `prompts_per_step` groups of mixed accuracy.
        What all of it measured decides which problems come next."""
        if batch.accuracy is not None:
            self.problems.measured(success_rates(batch, self._names))
        if self.dynamic is None:
            return batch
        assert batch.accuracy is not None  # `trainers.plan` refuses dynamic sampling where nothing is verified
        informative = (~uniform(batch.accuracy, batch.group)).nonzero()[:, 0]
        chosen = list(dict.fromkeys(batch.group[informative].tolist()))[: self.spec.prompts_per_step]
        return rows(batch, torch.isin(batch.group, torch.tensor(chosen, dtype=torch.long)).nonzero()[:, 0].tolist())

    def state(self) -> Any:
        begun = [(group.problem, group.number, group.step) for group in self._begun.values()] + self._again
        return {
            "data": self.problems.state(),
            "rounds": self._rounds,
            "extra": self._extra,
            "groups": self._groups,
            "begun": [{"problem": problem.id, "number": number, "step": step} for problem, number, step in begun],
        }

    def restore(self, state: Any) -> None:
        self.problems.restore(state["data"])
        self._rounds, self._extra, self._groups = state["rounds"], state["extra"], state["groups"]
        self._rounds -= len(state["begun"]) // self.spec.prompts_per_step
        self._again = [(self.problems.by_id[group["problem"]], group["number"], group["step"]) for group in state["begun"]]

    # -- a round ---------------------------------------------------------------------------------------------------------

    def _round(self, step: int) -> list[Group]:
        """Begin what there is capacity for, and wait for a step's worth of groups."""
        version = step - 1
        while self._rounds < min(version + self.mode.staleness + 1, self.steps) + self._extra:
            for problem, number, begun_in in self._next(step):
                self._begin(problem, number, begun_in, version)
            self._rounds += 1
        self.engine.submit(self._held)
        self._held = []
        ready = self._wait_for(self.spec.prompts_per_step)
        for key in ready:
            del self._begun[key]
        self._taken |= ready.keys()
        return [self._group(group) for group in ready.values()]

    def _group(self, begun: _Begun) -> Group:
        completions = [begun.done[k] for k in sorted(begun.done)]
        sampled, greedy = completions[: self._samples], completions[self._samples :]
        return Group(begun.problem, sampled, greedy=greedy[0] if greedy else None)

    def _next(self, step: int) -> list[tuple[Problem, int, int]]:
        """The problems of the next round, with the numbers of their groups and the steps that begin them: those first that were
        begun before a resume."""
        count = self.spec.prompts_per_step
        if self._again:
            round_, self._again = self._again[:count], self._again[count:]
            return round_
        first, self._groups = self._groups, self._groups + count
        return [(problem, first + i, step) for i, problem in enumerate(self.problems.next(count))]

    def _wait_for(self, count: int) -> dict[_Key, _Begun]:
        """The first `count` whole groups of the oldest version."""
        oldest = next(iter(self._begun.values())).version
        while self._whole[oldest] < count:
            if not self.engine.busy:
                raise RuntimeError(f"the engine has nothing left to do, and {count - self._whole[oldest]} groups are not whole")
            self._take_in(self.engine.poll())
        self._whole[oldest] -= count
        whole = ((key, group) for key, group in self._begun.items() if len(group.done) == self._size)
        return dict(itertools.islice(whole, count))

    def _begin(self, problem: Problem, number: int, step: int, version: int) -> None:
        problem = for_training(problem, self.length_budget, self.seed, step)
        numbers = itertools.count(step=self._size)
        first = next(n for n in numbers if (problem.id, n) not in self._begun and (problem.id, n) not in self._taken)
        self._begun[problem.id, first] = _Begun(problem, number, step, version)
        prompt_ids = self.prompter.render(problem)
        samplings = [self.spec.sampling] * self._samples + [replace(self.spec.sampling, temperature=0.0)] * self.greedy
        self._held += [
            Request(problem.id, first + k, seed_from(self.seed, number, k), prompt_ids, sampling)
            for k, sampling in enumerate(samplings)
        ]

    def _take_in(self, completions: Sequence[Completion]) -> None:
        """Give completions to their groups; those that were interrupted are to go on."""
        for completion in completions:
            if completion.finish_reason == "interrupted":
                self._held.append(completion.resumed())
                continue
            group = self._begun[completion.problem_id, completion.sample - completion.sample % self._size]
            group.done[completion.sample] = completion
            self._whole[group.version] += len(group.done) == self._size

    def _shared(self, groups: Sequence[Group]) -> Metrics:
        """The share of the tokens trained on that was not computed, since branches of a tree have them in common."""
        if self.spec.tree is None:
            return {}
        leaves = [c for group in groups for c in group.completions]
        used = sum(len(leaf.token_ids) for leaf in leaves)
        return {"tree/shared": Mean(used - computed_tokens(leaves, self.spec.tree.segment), used)}

    def _budgets(self, groups: Sequence[Group]) -> Metrics:
        """The mean length budget of the problems."""
        if self.length_budget is None:
            return {}
        return {"length/budget": Mean(sum(budget_of(group.problem) for group in groups), len(groups))}

    def _staleness(self, groups: Sequence[Group], step: int) -> Metrics:
        """How many versions older than the weights that are updated the tokens are."""
        if not self.mode.staleness:
            return {}
        versions = [c.versions for group in groups for c in group.completions if c.versions]
        tokens = sum(map(len, versions))
        # They never fall within a completion, and most completions have one: not every token need be looked at.
        total = sum(len(row) * row[0] if row[0] == row[-1] else sum(row) for row in versions)
        oldest = min(row[0] for row in versions)
        return {"staleness/mean": Mean((step - 1) * tokens - total, tokens), "staleness/max": Max(step - 1 - oldest)}


def sample_groups(
    engine: Engine,
    prompter: Prompter,
    problems: Sequence[Problem],
    samples: Sequence[int],
    sampling: Sampling,
    seed: tuple[object, ...],
    progress: Progress = no_progress,
) -> list[Group]:
    """A completion of each problem for each sample number, waited for. Its random numbers depend on `seed`, problem and number
    only."""
    requests = []
    for problem in problems:
        prompt_ids = prompter.render(problem)
        requests += [Request(problem.id, k, seed_from(*seed, problem.id, k), prompt_ids, sampling) for k in samples]
    completions: list[Completion] = engine.generate(requests, progress)
    size = len(samples)
    return [Group(problem, completions[i * size : (i + 1) * size]) for i, problem in enumerate(problems)]


def mixed(groups: Sequence[Group], verified: Sequence[Score]) -> list[bool]:
    """Whether each group has both right and wrong completions among those that could be judged."""
    scores = iter(verified)
    values = [[next(scores) for _ in group.completions] for group in groups]
    return [len({s.value for s in row if isinstance(s, Scored)}) > 1 for row in values]
