"""Which completions a step asks for: no two of them the same, however often a problem comes."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from rewards.compose import Rewards
from rlcore.data.mixture import Mixture
from rlcore.errors import UserError
from rlcore.prompts import Prompter
from rlcore.protocols import Manifest, WeightUpdate
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from rlcore.types import Completion, Group, Problem, Request
from rollout.scripted import Scripted
from trainers.sampler import Sampler


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
