"""Which completions a step asks for: no two of them the same, however often a problem comes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from rewards.compose import Rewards
from rlcore.data.mixture import Mixture
from rlcore.prompts import Prompter
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from rlcore.types import Problem, Request
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
