"""Why a length reward stands beside the answer, outside of accuracy, of the filters and of σ: what comes of it otherwise.

What the house does is run as it is: `Rewards.grade`, `Sampler.collect` and `select`, Short-RL's gate, the advantages. What the
summed reward would do in the place of the raw verifiable one is computed with the same functions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rewards.compose import Graded, Rewards
from rewards.length.short_rl import ShortRl
from rlcore.batch import GradedBatch
from rlcore.data.mixture import Mixture
from rlcore.prompts import Prompter
from rlcore.protocols import Reward
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL, Component
from rlcore.types import Completion, Group, Problem, Request, Sampling, Score, Scored
from rollout.scripted import Scripted
from trainers.advantages.dr_grpo import dr_grpo
from trainers.advantages.grpo import grpo
from trainers.groups import uniform
from trainers.problems import success_rates
from trainers.sampler import Sampler, mixed

LENGTHS = [300, 350, 500, 900]


class Told(Reward):
    """Right where the completion says so."""

    verifiable = True

    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        return [Scored(float(c.text == "right")) for group in groups for c in group.completions]


def group(name: str, lengths: Sequence[int], right: Sequence[bool]) -> Group:
    completions = [
        Completion(name, k, 0, (1,), (2,) * n, (1,) * n, (0.0,) * n, (0,) * n, Sampling(), "stop", "right" if r else "wrong")
        for k, (n, r) in enumerate(zip(lengths, right, strict=True))
    ]
    return Group(Problem(name, "", ""), completions)


def graded(groups: Sequence[Group], weight: float) -> Graded:
    """With Kimi's length reward beside the answer."""
    components = [{"name": f"{__name__}:Told"}, {"name": "kimi", "weight": weight}]
    return Rewards([Component.model_validate(component) for component in components], 1.0).grade(groups)


def shaped(batch: GradedBatch) -> list[Score]:
    return [Scored(total) for total in batch.totals.tolist()]


# -- filters -------------------------------------------------------------------------------------------------------------


def test_dynamic_sampling_on_the_sum_would_keep_groups_that_teach_length_alone(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Of the problems 0 to 5, every third is always solved, every third never, and every third half of the time; samples differ
    in length. The first round of two has a group of mixed accuracy at most, so more are asked for and the others are left out.
    By the sum of rewards every group is mixed: the first round would do, and go into training whole."""
    data = tmp_path / "few.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}+1=?", "answer": str(i + 1)}) + "\n" for i in range(6)))
    small = [f"data={{name: file, path: {data}}}", "rollout.prompts_per_step=2", "rollout.samples=4", "eval=null"]
    recipe = load(["quickstart", *small, "rewards=[answer, kimi]", "algorithm.dynamic_sampling={max_rounds: 3}"]).recipe
    assert isinstance(recipe, RL)

    def said(request: Request) -> str:
        number, place = int(request.problem_id.rpartition("/")[2]), request.sample % 4
        right = {0: True, 1: False, 2: place < 2}[number % 3]
        return "1" * (3 * place + 1) + f"\n#### {number if right else -1}"

    rewards = Rewards(recipe.rewards, 1.0)
    sampler = Sampler(recipe, Mixture(recipe.data, 0), Prompter(recipe.prompt, tokenizer), Scripted(tokenizer, said), rewards)
    rollouts = sampler.collect(1)
    kinds = [int(each.problem.id.rpartition("/")[2]) % 3 for each in rollouts.groups]
    batch = rewards.grade(rollouts.groups, rollouts.verified).batch
    rewards.close()
    assert rollouts.metrics["groups/rounds"].value > 1
    assert sorted(set(sampler.select(batch).group.tolist())) == [i for i, kind in enumerate(kinds) if kind == 2][:2]

    assert all(mixed(rollouts.groups, shaped(batch)))
    assert not uniform(batch.totals, batch.group).any()
    about_answers = dr_grpo(replace(batch, rewards={"answer": batch.rewards["answer"]})).policy
    about_both = dr_grpo(batch).policy
    for i, kind in enumerate(kinds):
        members = batch.group == i
        assert (about_both[members] != 0).any()
        assert (about_answers[members] != 0).any() == (kind == 2)


# -- accuracy ------------------------------------------------------------------------------------------------------------


def test_accuracy_made_of_the_sum_would_fall_because_answers_got_longer() -> None:
    """Three of four are right, first briefly and then at length: accuracy stays 0.75, and so do success rates, while the mean
    of the summed rewards falls from 1 to 0.375. Short-RL's gate stays open by the one, and would close by the other."""
    right = [True, True, True, False]
    brief, long = graded([group("p", [100, 100, 100, 900], right)], 1), graded([group("p", [900, 900, 900, 100], right)], 1)
    best, best_of_sums = 0.0, 0.0
    for each, mean, opens in ((brief, 1.0, True), (long, 0.375, False)):
        assert each.metrics["accuracy"].value == 0.75
        assert success_rates(each.batch, ["p"]) == {"p": 0.75}
        assert each.batch.totals.mean().item() == pytest.approx(mean)
        gate = ShortRl(length_tolerance=0)
        best, told = gate.update(each.groups, each.batch, best)
        assert told["active"].value == 1
        summed = [replace(g, accuracy=tuple(each.batch.totals.tolist())) for g in each.groups]
        best_of_sums, told = gate.update(summed, each.batch, best_of_sums)
        assert told["active"].value == opens


# -- σ -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1, 0.1, 0.001])
def test_grpos_sigma_pushes_right_but_long_answers_down_as_hard_as_wrong_ones(weight: float) -> None:
    """All right, of 300, 350, 500 and 900 tokens, beside a group with one wrong answer, all of one length. GRPO divides by the
    spread, which in the first is that of the length reward alone: however small its weight, the longest gets −1.42, and the
    wrong answer −1.5. Without σ it is −0.6458 of the weight, and −0.75."""
    batch = graded([group("long", LENGTHS, [True] * 4), group("wrong", [400] * 4, [True, True, True, False])], weight).batch
    with_sigma, without = grpo(batch, epsilon=0).policy[:, 0], dr_grpo(batch).policy[:, 0]
    assert with_sigma.tolist() == pytest.approx([0.7814, 0.5975, 0.0460, -1.4249, 0.5, 0.5, 0.5, -1.5], abs=1e-3)
    assert without[:4].tolist() == pytest.approx([weight * a for a in (0.354167, 0.270833, 0.020833, -0.645833)], rel=1e-3)
    assert without[4:].tolist() == pytest.approx([0.25, 0.25, 0.25, -0.75])
    assert torch.equal(with_sigma.sign(), without.sign())  # it is their size that σ changes, not what is better
