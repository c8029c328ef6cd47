"""Which problems a step trains on, and the groups it gets for them; how far sampling may run ahead of training.

This is where the modes differ, and the loop knows nothing of it. With staleness η, rounds of `prompts_per_step` problems are
handed to the engine while

    rounds begun ≤ version + η + 1        (capacity)

where `version` is the number of steps trained. A step takes its groups the oldest first, and waits for those that would be
older than η at the next one. A group that is begun at version v and trained in step s, which updates version s − 1, so has
staleness s − 1 − v ≤ η. The count of rounds is checkpointed with the problems that were begun and not trained on: a resumed run
begins those again, under the same bound.

    synchronous     η = 0: a step begins its own round and waits for it
    one-step-off    η = 1: the next round is sampled while this one is learned from, and is whole before the weights change
    asynchronous    any η: a step takes what is done; what is under way when the weights change is interrupted, and goes on
                    from its tokens, which keep their log-probs and versions (partial rollouts, as in AReaL and Kimi k1.5)
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from rewards.compose import Rewards
from rlcore.batch import GradedBatch, rows
from rlcore.data.mixture import Mixture
from rlcore.prompts import Prompter
from rlcore.protocols import Engine, Progress, no_progress
from rlcore.recipe.schema import RL
from rlcore.run.metrics import Max, Mean, Metrics
from rlcore.types import Completion, Group, Problem, Request, Sampling, Score, Scored, seed_from
from trainers.groups import uniform


@dataclass(frozen=True)
class Rollouts:
    groups: list[Group]
    verified: list[Score] | None  # the verifiable component's scores, where sampling already needed them
    metrics: Metrics


@dataclass(eq=False)
class _Begun:
    """A group that is being sampled."""

    problem: Problem
    number: int  # of all groups of the run: with the sample it decides the random numbers
    version: int  # of the weights when it was begun
    first: int  # its samples are numbered from here
    done: dict[int, Completion] = field(default_factory=dict)  # by sample


class Sampler:
    def __init__(self, recipe: RL, problems: Mixture, prompter: Prompter, engine: Engine, rewards: Rewards) -> None:
        self.problems, self.prompter, self.engine, self.rewards = problems, prompter, engine, rewards
        self.spec, self.dynamic, self.seed, self.steps = (
            recipe.rollout,
            recipe.algorithm.dynamic_sampling,
            recipe.seed,
            recipe.steps,
        )
        self.mode = recipe.mode
        self._rounds = 0  # begun so far
        self._extra = 0  # of these, beyond one a step: what dynamic sampling asked for
        self._groups = 0  # begun so far
        self._begun: list[_Begun] = []  # and not trained on, the oldest first
        self._taken: list[_Begun] = []  # by the step that is being trained
        self._held: list[Request] = []  # to be handed to the engine, with what was sampled of them before

    # -- the loop's verbs ------------------------------------------------------------------------------------------------

    def collect(self, step: int) -> Rollouts:
        """The groups of a step: `prompts_per_step`, or rounds of so many until that many have mixed raw accuracy."""
        self._taken.clear()
        groups = self._round(step)
        if self.dynamic is None:
            return Rollouts(groups, None, self._staleness(groups, step))
        verified = self.rewards.verify(groups)
        for _ in range(self.dynamic.max_rounds - 1):
            if sum(mixed(groups, verified)) >= self.spec.prompts_per_step:
                break
            self._extra += 1
            fresh = self._round(step)
            groups += fresh
            verified += self.rewards.verify(fresh)
        return Rollouts(groups, verified, self._staleness(groups, step))

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Within it, what is under way goes on in the background. Raises what the engine raised meanwhile."""
        failures: list[BaseException] = []
        over = threading.Event()

        def work() -> None:
            try:
                while self.engine.busy and not over.is_set():
                    self._take_in(self.engine.poll())
            except BaseException as error:  # raised again below, in the loop's own thread
                failures.append(error)

        if not self.engine.busy:
            yield
            return
        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        if failures:
            raise failures[0]

    def pause(self) -> None:
        """Leave nothing under way, so that the weights can change."""
        if self.mode.partial:
            self._take_in(self.engine.interrupt())
        while self.engine.busy:
            self._take_in(self.engine.poll())

    def select(self, batch: GradedBatch) -> GradedBatch:
        """What of the graded batch goes into training: everything, or the first `prompts_per_step` groups of mixed accuracy."""
        if self.dynamic is None:
            return batch
        assert batch.accuracy is not None  # `trainers.plan` refuses dynamic sampling where nothing is verified
        informative = (~uniform(batch.accuracy, batch.group)).nonzero()[:, 0]
        chosen = list(dict.fromkeys(batch.group[informative].tolist()))[: self.spec.prompts_per_step]
        return rows(batch, torch.isin(batch.group, torch.tensor(chosen, dtype=torch.long)).nonzero()[:, 0].tolist())

    def state(self) -> Any:
        begun = [{"problem": group.problem.id, "number": group.number} for group in self._begun]
        return {
            "data": self.problems.state(),
            "rounds": self._rounds,
            "extra": self._extra,
            "groups": self._groups,
            "begun": begun,
        }

    def restore(self, state: Any) -> None:
        self.problems.restore(state["data"])
        self._rounds, self._extra, self._groups = state["rounds"], state["extra"], state["groups"]
        by_id = {problem.id: problem for problem in self.problems.problems}
        trained = self._rounds - self._extra - len(state["begun"]) // self.spec.prompts_per_step
        for group in state["begun"]:
            self._begin(by_id[group["problem"]], group["number"], version=trained)

    # -- a round ---------------------------------------------------------------------------------------------------------

    def _round(self, step: int) -> list[Group]:
        """Begin what there is capacity for, and wait for a step's worth of groups."""
        version = step - 1
        while self._rounds < min(version + self.mode.staleness + 1, self.steps) + self._extra:
            for problem in self.problems.next(self.spec.prompts_per_step):
                self._begin(problem, self._groups, version)
                self._groups += 1
            self._rounds += 1
        self.engine.submit(self._held)
        self._held = []
        while (ready := self._ready(version)) is None:
            self._take_in(self.engine.poll())
        self._begun = [group for group in self._begun if group not in ready]
        self._taken += ready
        return [Group(group.problem, [group.done[k] for k in sorted(group.done)]) for group in ready]

    def _ready(self, version: int) -> list[_Begun] | None:
        """A step's worth of finished groups, the oldest first; None while there are too few, or one that cannot wait is not
        done."""
        done = [group for group in self._begun if len(group.done) == self.spec.samples]
        due = [group for group in self._begun if version - group.version >= self.mode.staleness]
        if len(done) < self.spec.prompts_per_step or any(group not in done for group in due):
            return None
        return done[: self.spec.prompts_per_step]

    def _begin(self, problem: Problem, number: int, version: int) -> None:
        others = {group.first for group in (*self._begun, *self._taken) if group.problem.id == problem.id}
        first = next(n for n in itertools.count(step=self.spec.samples) if n not in others)
        self._begun.append(_Begun(problem, number, version, first))
        prompt_ids = self.prompter.render(problem)
        self._held += [
            Request(problem.id, first + k, seed_from(self.seed, number, k), prompt_ids, self.spec.sampling)
            for k in range(self.spec.samples)
        ]

    def _take_in(self, completions: Sequence[Completion]) -> None:
        """Give completions to their groups; those that were interrupted are to go on."""
        for completion in completions:
            if completion.finish_reason == "interrupted":
                self._held.append(completion.resumed())
                continue
            group = next(
                g
                for g in self._begun
                if g.problem.id == completion.problem_id and g.first <= completion.sample < g.first + self.spec.samples
            )
            group.done[completion.sample] = completion

    def _staleness(self, groups: Sequence[Group], step: int) -> Metrics:
        """How many versions older than the weights that are updated the tokens are."""
        if not self.mode.staleness:
            return {}
        ages = [step - 1 - v for group in groups for completion in group.completions for v in completion.versions]
        return {"staleness/mean": Mean(sum(ages), len(ages)), "staleness/max": Max(max(ages))}


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
