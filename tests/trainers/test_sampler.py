"""Which completions a step asks for: no two of them the same, however often a problem comes, in every mode and with every way
to choose what is sampled."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from rewards.compose import Rewards
from rlcore.data.mixture import Mixture
from rlcore.errors import UserError
from rlcore.length_budget import budget_of
from rlcore.prompts import Prompter
from rlcore.protocols import Manifest, WeightUpdate
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from rlcore.run.metrics import Max, Mean
from rlcore.types import Completion, Group, Problem, Request, Scored
from rollout.scripted import Scripted
from trainers.sampler import Rollouts, Sampler


class Watched(Scripted):
    """Keeps what it was asked."""

    def submit(self, requests):
        self.asked = [*getattr(self, "asked", []), *requests]
        super().submit(requests)


@pytest.fixture
def sampler(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Callable[..., Sampler]:
    """A sampler over a source of `problems` problems, whose answers are all wrong."""

    def make(problems: int, *overrides: str) -> Sampler:
        path = tmp_path / "few.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"{i}+1=?", "answer": str(i + 1)}) + "\n" for i in range(problems)))
        small = [f"data={{name: file, path: {path}}}", "rollout.prompts_per_step=5", "rollout.samples=3", "eval=null"]
        recipe = load(["quickstart", *small, *overrides]).recipe
        assert isinstance(recipe, RL)
        return Sampler(
            recipe,
            Mixture(recipe.data, recipe.seed),
            Prompter(recipe.prompt, tokenizer),
            Watched(tokenizer, lambda request: "#### -1"),
            Rewards(recipe.rewards, 1.0),
        )

    return make


def asked(sampler: Sampler) -> list[Request]:
    engine = sampler.engine
    assert isinstance(engine, Watched)
    return engine.asked


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("problems", [2, 5, 20])
def test_a_problem_that_comes_again_in_a_step_is_sampled_anew(sampler: Callable, problems: int, rounds: int) -> None:
    """By a source with fewer problems than a step asks for, and by rounds of dynamic sampling: the numbers go on, and every
    completion has random numbers of its own."""
    made = sampler(problems, f"algorithm.dynamic_sampling={{max_rounds: {rounds}}}")
    groups = made.collect(1).groups
    requests = asked(made)
    assert len(requests) == 5 * 3 * rounds == len({request.seed for request in requests})
    for name, count in Counter(request.problem_id for request in requests).items():
        assert sorted(r.sample for r in requests if r.problem_id == name) == list(range(count))
    assert [[c.sample for c in group.completions] for group in groups] == [
        [request.sample for request in requests[i : i + 3]] for i in range(0, len(requests), 3)
    ]


def test_the_next_step_has_other_random_numbers_for_the_same_sample(sampler: Callable) -> None:
    made = sampler(2)
    for step in (1, 2):
        made.collect(step)
    assert len({request.seed for request in asked(made)}) == 30


def test_a_prompt_is_rendered_once_for_all_its_samples(sampler: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[Problem] = []
    render = Prompter.render
    monkeypatch.setattr(Prompter, "render", lambda self, problem: rendered.append(problem) or render(self, problem))
    sampler(20).collect(1)
    assert len(rendered) == 5


# -- modes ---------------------------------------------------------------------------------------------------------------


class Timed(Watched):
    """Each completion takes as many polls as it has tokens, and says how many of its words are there when it is interrupted."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, lambda request: "1" * (1 + request.seed % 60))
        self.said: dict[int, int] = {}

    def poll(self) -> list[Completion]:
        finished = []
        for request in list(self._waiting):
            self.said[request.seed] = self.said.get(request.seed, len(request.prefix.token_ids)) + 1
            if self.said[request.seed] > request.seed % 60:
                self._waiting.remove(request)
                finished.append(self._speak(request))
        return finished


MODES = ["sync", "one_step_off", "async", "{name: async, cap: 3}"]


@pytest.fixture
def timed(sampler: Callable, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Sampler]:
    def make(mode: str, *overrides: str) -> Sampler:
        made: Sampler = sampler(40, f"cluster={{mode: {mode}}}", "steps=12", "rollout.max_new_tokens=64", *overrides)
        made.engine = Timed(tokenizer)
        return made

    return make


def trained(sampler: Sampler, steps: range) -> list[list[Group]]:
    """The groups of each step, with new weights after each and some sampling while it is learned from."""
    result = []
    for step in steps:
        result.append(sampler.collect(step).groups)
        for _ in range(step % 3):
            sampler._take_in(sampler.engine.poll())
        sampler.pause()
        assert not sampler.engine.busy
        sampler.engine.sync(WeightUpdate(Manifest(step, {}), []))
    return result


@pytest.mark.parametrize("mode", MODES)
def test_no_group_is_older_than_the_cap_and_none_is_lost(timed: Callable, mode: str) -> None:
    made = timed(mode)
    cap = made.mode.staleness
    steps = trained(made, range(1, 13))
    assert [len(groups) for groups in steps] == [5] * 12
    oldest = [
        step - 1 - min(v for group in groups for c in group.completions for v in c.versions)
        for step, groups in enumerate(steps, 1)
    ]
    assert max(oldest) == cap
    everything = [(c.problem_id, c.sample, c.seed) for groups in steps for group in groups for c in group.completions]
    assert len(set(everything)) == len(everything) == 12 * 5 * 3
    assert {c.finish_reason for groups in steps for group in groups for c in group.completions} == {"stop"}
    assert {len(c.token_ids) - c.seed % 60 for groups in steps for group in groups for c in group.completions} == {1}


@pytest.mark.parametrize("mode", MODES)
def test_capacity_is_never_exceeded(timed: Callable, mode: str) -> None:
    """Rounds begun ≤ version + η + 1, and never more than the run has steps."""
    made = timed(mode)
    for version, step in enumerate(range(1, 13)):
        made.collect(step)
        assert made._rounds == min(version + made.mode.staleness + 1, 12)
        made.pause()


def test_a_partial_rollout_keeps_its_tokens_and_their_versions(timed: Callable) -> None:
    made = timed("{name: async, cap: 2}")
    completions = [c for groups in trained(made, range(1, 13)) for group in groups for c in group.completions]
    across = [c for c in completions if len(set(c.versions)) > 1]
    assert across
    for completion in across:
        assert list(completion.versions) == sorted(completion.versions)
        assert len(completion.logprobs) == len(completion.versions) == len(completion.token_ids)


def test_one_step_off_never_breaks_a_completion(timed: Callable) -> None:
    completions = [c for groups in trained(timed("one_step_off"), range(1, 13)) for group in groups for c in group.completions]
    assert all(len(set(c.versions)) == 1 for c in completions)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("killed_after", [0, 4])
def test_a_resumed_run_begins_again_what_was_not_trained_on(timed: Callable, mode: str, killed_after: int) -> None:
    """With the random numbers it had, within the capacity from the first step on; in synchronous mode that is the unbroken
    run."""
    unbroken = trained(timed(mode), range(1, 13))
    before = timed(mode)
    first = trained(before, range(1, killed_after + 1))
    state = json.loads(json.dumps(before.state()))
    after = timed(mode)
    after.restore(state)
    second = trained(after, range(killed_after + 1, 13))
    seeds = [[c.seed for group in groups for c in group.completions] for groups in first + second]
    assert sorted(itertools.chain(*seeds)) == sorted(
        c.seed for groups in unbroken for group in groups for c in group.completions
    )
    if mode == "sync":
        assert seeds == [[c.seed for group in groups for c in group.completions] for groups in unbroken]
    for step, groups in enumerate(second, killed_after + 1):
        oldest = min(v for group in groups for c in group.completions for v in c.versions)
        assert step - 1 - max(oldest, killed_after) <= after.mode.staleness


def test_a_run_that_is_resumed_in_another_mode_keeps_the_bound_of_that(timed: Callable) -> None:
    """What was begun ahead is begun again when its turn comes, with its random numbers."""
    unbroken = trained(timed("sync"), range(1, 13))
    before = timed("{name: async, cap: 4}")
    first = trained(before, range(1, 5))
    after = timed("sync")
    after.restore(json.loads(json.dumps(before.state())))
    after.engine.sync(WeightUpdate(Manifest(4, {}), []))
    second = trained(after, range(5, 13))
    every = [c.seed for steps in (first, second) for groups in steps for group in groups for c in group.completions]
    assert sorted(every) == sorted(c.seed for groups in unbroken for group in groups for c in group.completions)
    for step, groups in enumerate(second, 5):
        assert {v for group in groups for c in group.completions for v in c.versions} == {step - 1}


@pytest.mark.parametrize("mode", MODES)
def test_dynamic_sampling_asks_for_more_in_every_mode(timed: Callable, mode: str) -> None:
    """All answers are wrong: each step takes the rounds that it may."""
    made = timed(mode, "algorithm.dynamic_sampling={max_rounds: 3}")
    assert [len(groups) for groups in trained(made, range(1, 5))] == [15] * 4


def test_what_fails_while_learning_goes_on_is_raised(timed: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    made = timed("one_step_off")
    made.collect(1)
    monkeypatch.setattr(made.engine, "poll", lambda: (_ for _ in ()).throw(UserError("no workers left")))
    with made.going_on():
        pass
    with pytest.raises(UserError, match="no workers left"):
        made.pause()


def test_an_engine_that_loses_a_request_is_not_waited_for(timed: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    made = timed("sync")
    monkeypatch.setattr(made.engine, "poll", lambda: made.engine._waiting.clear() or [])
    with pytest.raises(RuntimeError, match="the engine has nothing left to do, and 5 groups are not whole"):
        made.collect(1)


# -- a greedy completion -------------------------------------------------------------------------------------------------

REMAX = "algorithm.advantage=remax"


@pytest.mark.parametrize("problems", [2, 20])
def test_a_greedy_completion_is_asked_once_for_each_group(sampler: Callable, problems: int) -> None:
    """Beside the three that are trained on, also where the source has fewer problems than the round."""
    made = sampler(problems, REMAX)
    groups = made.collect(1).groups
    requests = asked(made)
    assert [r.sampling.temperature for r in requests] == [1.0, 1.0, 1.0, 0.0] * 5
    assert len({(r.problem_id, r.sample) for r in requests}) == len({r.seed for r in requests}) == 20
    for group, own in zip(groups, (requests[i : i + 4] for i in range(0, 20, 4)), strict=True):
        assert group.greedy is not None
        assert [c.seed for c in [*group.completions, group.greedy]] == [request.seed for request in own]
        assert group.greedy.sampling.temperature == 0


def test_no_greedy_completion_is_asked_where_no_advantage_needs_it(sampler: Callable) -> None:
    made = sampler(20)
    assert all(group.greedy is None for group in made.collect(1).groups)
    assert all(request.sampling.temperature for request in asked(made))


def test_a_greedy_completion_is_graded_and_not_trained_on(sampler: Callable, tokenizer: PreTrainedTokenizerBase) -> None:
    """The greedy ones are right and the others wrong."""
    made = sampler(20, REMAX)
    made.engine = Watched(tokenizer, lambda request: said(request, right=not request.sampling.temperature))
    graded = made.rewards.grade(made.collect(1).groups)
    batch = made.select(graded.batch)
    assert batch.greedy is not None
    assert batch.accuracy is not None
    assert batch.greedy.tolist() == [1] * 15
    assert batch.accuracy.tolist() == [0] * 15
    assert len(graded.ledger) == 15
    assert graded.metrics["reward/greedy"].value == 1
    assert graded.metrics["reward"].value == 0


def test_dynamic_sampling_asks_for_a_greedy_completion_of_every_round_and_does_not_compare_it(
    sampler: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Only the greedy ones are right: no group is mixed, and each step takes the rounds that it may."""
    made = sampler(20, REMAX, "algorithm.dynamic_sampling={max_rounds: 3}")
    made.engine = Watched(tokenizer, lambda request: said(request, right=not request.sampling.temperature))
    rollouts = made.collect(1)
    assert rollouts.verified is not None
    assert (len(rollouts.groups), len(rollouts.verified)) == (15, 45)
    assert [r.sampling.temperature for r in asked(made)].count(0) == 15
    graded = made.rewards.grade(rollouts.groups, rollouts.verified)
    assert graded.batch.greedy is not None
    assert graded.batch.greedy.tolist() == [1] * 45
    assert len(made.select(graded.batch).tokens) == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_asks_for_the_greedy_completions_again(timed: Callable, mode: str) -> None:
    unbroken = trained(timed(mode, REMAX), range(1, 13))
    before, after = timed(mode, REMAX), timed(mode, REMAX)
    first = trained(before, range(1, 5))
    after.restore(json.loads(json.dumps(before.state())))
    second = trained(after, range(5, 13))

    def seeds(steps: list[list[Group]]) -> list[tuple[int, ...]]:
        return sorted((g.greedy.seed, *(c.seed for c in g.completions)) for groups in steps for g in groups if g.greedy)

    assert len(seeds(unbroken)) == 60
    assert seeds(first + second) == seeds(unbroken)


# -- length budgets ------------------------------------------------------------------------------------------------------

BUDGETS = {
    "uniform": "length_budget={uniform: [2, 60]}",
    "decay": "length_budget={decay: {start: 60, factor: 0.5, every: 3}}",
}


def told(steps: list[list[Group]]) -> dict[int, int]:
    """Each completion's budget by its seed."""
    return {c.seed: budget_of(group.problem) for groups in steps for group in groups for c in group.completions}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_policy_is_told_the_budget_that_rewards_read(
    timed: Callable, tokenizer: PreTrainedTokenizerBase, mode: str, budget: str
) -> None:
    """All completions of a group the same one, by which the step's mean is reported."""
    made = timed(mode, BUDGETS[budget], "prompt.template='{problem}+{budget}'")
    for step in range(1, 5):
        rollouts = made.collect(step)
        budgets = [budget_of(group.problem) for group in rollouts.groups]
        assert rollouts.metrics["length/budget"] == Mean(sum(budgets), 5)
        for group, own in zip(rollouts.groups, budgets, strict=True):
            prompts = {tokenizer.decode(c.prompt_ids, skip_special_tokens=True) for c in group.completions}
            assert prompts == {f"{group.problem.prompt}+{own}\n"}
        if budget == "uniform":
            assert len(set(budgets)) > 1
        elif mode == "sync":
            assert budgets == [60 if step <= 3 else 30] * 5
        made.pause()
        made.engine.sync(WeightUpdate(Manifest(step, {}), []))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_resumed_run_has_the_budgets_of_an_unbroken_one(timed: Callable, mode: str, budget: str) -> None:
    """Also for what was begun before it broke, and is begun again later."""
    unbroken = trained(timed(mode, BUDGETS[budget], "rewards=[triangle]"), range(1, 13))
    before, after = (timed(mode, BUDGETS[budget], "rewards=[triangle]") for _ in range(2))
    first = trained(before, range(1, 4))
    after.restore(json.loads(json.dumps(before.state())))
    second = trained(after, range(4, 13))
    assert len(told(unbroken)) == 12 * 5 * 3
    assert told(first + second) == told(unbroken)


# -- which problems, and how many samples ---------------------------------------------------------------------------------


def said(request: Request, right: bool) -> str:
    """The answer to a problem of the source, whose ids are numbered as its answers are."""
    return f"#### {request.problem_id.rpartition('/')[2]}" if right else "#### -1"


class Unsure(Watched):
    """Every token at probability 1/2; the even problems are right half of the time and the odd ones never."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, lambda request: said(request, even(request.problem_id) and request.seed % 2 == 0))

    def _speak(self, request: Request, interrupted: bool = False) -> Completion:
        completion = super()._speak(request, interrupted)
        return replace(completion, logprobs=(math.log(0.5),) * len(completion.token_ids))


def even(problem_id: str) -> bool:
    return int(problem_id.rpartition("/")[2]) % 2 == 0


@pytest.fixture
def unsure(sampler: Callable, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Sampler]:
    def make(problems: int, *overrides: str) -> Sampler:
        made: Sampler = sampler(problems, *overrides)
        made.engine = Unsure(tokenizer)
        return made

    return make


def learned(sampler: Sampler, steps: range) -> list[Rollouts]:
    """What is collected in each step, graded and heard of."""
    result = []
    for step in steps:
        result.append(sampler.collect(step))
        sampler.select(sampler.rewards.grade(result[-1].groups, result[-1].verified).batch)
        sampler.pause()
        sampler.engine.sync(WeightUpdate(Manifest(step, {}), []))
    return result


def test_the_curriculum_hears_what_was_measured(unsure: Callable) -> None:
    """20 problems in rounds of 5. After an epoch, the odd half of them, which nobody solves, comes less often."""
    made = unsure(20, "steps=30", "algorithm.curriculum={target: 0.5, candidates: 3}")
    steps = learned(made, range(1, 31))
    assert "curriculum/rate" in steps[-1].metrics
    first, later = ([g.problem.id for s in part for g in s.groups] for part in (steps[:4], steps[10:]))
    assert len(set(first)) == 20
    assert sum(map(even, later)) > 0.6 * len(later)


def test_replay_hears_what_was_measured(unsure: Callable) -> None:
    """Two steps after each round, one of its problems that nobody solved is among the five."""
    made = unsure(60, "steps=9", "algorithm.replay={share: 0.2, after: 2}")
    steps = [[group.problem.id for group in rollouts.groups] for rollouts in learned(made, range(1, 10))]
    unsolved = [[g.problem.id for g in s.groups if not even(g.problem.id)] for s in learned(unsure(60), range(1, 2))]
    again = [name for i, names in enumerate(steps) for name in names if any(name in earlier for earlier in steps[:i])]
    assert again[0] == unsolved[0][0]
    assert again[0] in steps[2]
    assert len(again) == 7
    assert not any(name in steps[i + 1] for i, names in enumerate(steps[:-1]) for name in names)


POLICIES = {
    "curriculum": "algorithm.curriculum={candidates: 2}",
    "replay": "algorithm.replay={share: 0.4, after: 1}",
    "both": "algorithm={curriculum: {target: 0.3}, replay: {share: 0.2, after: 2}, dynamic_sampling: {max_rounds: 2}}",
    "budget": "algorithm={advantage: remax, budget: {pilot: 2}}",
}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_resumed_run_goes_on_with_the_same_problems_and_random_numbers(unsure: Callable, policy: str) -> None:
    make = lambda: unsure(30, "steps=12", POLICIES[policy])  # noqa: E731
    unbroken = learned(make(), range(1, 13))
    before, after = make(), make()
    first = learned(before, range(1, 6))
    after.restore(json.loads(json.dumps(before.state())))
    second = learned(after, range(6, 13))
    seeds = [[[c.seed for c in group.completions] for group in rollouts.groups] for rollouts in first + second]
    assert seeds == [[[c.seed for c in group.completions] for group in rollouts.groups] for rollouts in unbroken]
    assert [rollouts.metrics for rollouts in first + second] == [rollouts.metrics for rollouts in unbroken]


@pytest.mark.parametrize("mode", MODES)
def test_curriculum_and_replay_go_with_every_mode(unsure: Callable, mode: str) -> None:
    made = unsure(30, "steps=12", f"cluster={{mode: {mode}}}", "algorithm={curriculum: {}, replay: {share: 0.2}}")
    assert [len(rollouts.groups) for rollouts in learned(made, range(1, 13))] == [5] * 12


@pytest.mark.parametrize("extra", [[], [REMAX]], ids=["plain", "greedy"])
@pytest.mark.parametrize("problems", [2, 20])
def test_the_budget_is_spent_where_something_is_learned(
    unsure: Callable, problems: int, extra: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 · 8 samples: each problem has a pilot of 4, and those of them that solved something divide the other 20."""
    verified: list[Completion] = []
    verify = Rewards.verify
    monkeypatch.setattr(
        Rewards,
        "verify",
        lambda self, groups: verified.extend(c for g in groups for c in g.completions) or verify(self, groups),
    )
    made = unsure(problems, "rollout.samples=8", "algorithm.budget={pilot: 4}", *extra)
    rollouts = made.collect(1)
    sizes = [len(group.completions) for group in rollouts.groups]
    solved = [any(is_right(c) for c in group.completions[:4]) for group in rollouts.groups]
    assert any(solved)
    assert not all(solved)
    assert sum(sizes) == 40
    assert all((size > 4) == right for size, right in zip(sizes, solved, strict=True))
    completions = [c for group in rollouts.groups for c in group.completions]
    assert rollouts.verified is not None
    assert [score.value for score in rollouts.verified if isinstance(score, Scored)] == [is_right(c) for c in completions]
    assert sorted(c.seed for c in verified) == sorted(c.seed for c in completions)  # each of them once
    greedy = [group.greedy for group in rollouts.groups if group.greedy]
    assert len(greedy) == 5 * bool(extra)
    everything = {(c.problem_id, c.sample, c.seed) for c in completions + greedy}
    assert (
        len(everything) == len({seed for *_, seed in everything}) == len({(n, k) for n, k, _ in everything}) == 40 + len(greedy)
    )
    assert {c.sampling.temperature for c in completions} == {1.0}
    assert rollouts.metrics == {"budget/min": Mean(4, 1), "budget/max": Max(max(sizes))}
    batch = made.rewards.grade(rollouts.groups, rollouts.verified).batch
    assert Counter(batch.group.tolist()) == dict(enumerate(sizes))


def is_right(completion: Completion) -> bool:
    return completion.text != "#### -1"


def test_a_budget_of_which_nothing_can_be_told_is_divided_evenly(sampler: Callable) -> None:
    made = sampler(20, "rollout.samples=6", "algorithm.budget={pilot: 2}")
    rollouts = made.collect(1)
    assert [len(group.completions) for group in rollouts.groups] == [6] * 5
    assert rollouts.metrics == {"budget/min": Mean(6, 1), "budget/max": Max(6)}
