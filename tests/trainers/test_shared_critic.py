"""A critic on the policy's body: it adds its loss to the policy's and changes nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rlcore import jobs
from rlcore.batch import GradedBatch, TrainingBatch
from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from trainers import algorithm
from trainers.build import build_learner
from trainers.learner import Learner
from trainers.shared_critic import SharedActorCritic

SHARED = ["algorithms/ppo", "algorithm.critic={shared: true, clip: null}"]


@pytest.fixture
def make(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Callable[..., SharedActorCritic]:
    def made(*overrides: str) -> Learner:
        recipe = load(["quickstart", "device=cpu", "steps=10", "optimizer.learning_rate=1.0e-2", *overrides]).recipe
        assert isinstance(recipe, RL)
        return build_learner(recipe, tiny_spec.load(), tokenizer, algorithm.objective(recipe))

    return made


@pytest.fixture
def graded(make_batch: Callable) -> GradedBatch:
    batch: GradedBatch = make_batch([1, 0, 1, 0], [0, 0, 1, 1], [5, 1, 7, 3])
    return batch


def training(learner: SharedActorCritic, graded: GradedBatch, returns: torch.Tensor, push: float = 1.0) -> TrainingBatch:
    signs = torch.tensor([1.0, -1, 1, -1])[:, None].expand(graded.tokens.shape)
    return TrainingBatch(replace(graded, values=learner.values(graded)), push * signs, None, returns)


def test_the_policys_numbers_are_those_of_a_policy_alone(make: Callable, graded: GradedBatch) -> None:
    """Log-probs; and all weights after a step in which the values, which begin at 0, are right already."""
    shared, alone = make(*SHARED), make("algorithms/ppo", "algorithm.critic=null")
    assert not shared.values(graded).any()
    torch.testing.assert_close(shared.logprobs(graded), alone.logprobs(graded), atol=0, rtol=0)
    nothing = torch.zeros(graded.tokens.shape)
    batch = training(shared, graded, nothing)
    told, plain = shared.update(batch), alone.update(batch)
    assert {"critic/error", "critic/value"} == told.keys() - plain.keys()
    for name, parameter in alone.model.named_parameters():
        torch.testing.assert_close(dict(shared.model.named_parameters())[name], parameter, atol=1e-6, rtol=1e-5)


def test_the_loss_is_the_policys_and_a_share_of_the_critics(make: Callable, graded: GradedBatch) -> None:
    """All values are 0 and all returns 1: ½·1² a token, times the coefficient."""
    ones = torch.ones(graded.tokens.shape)
    found = {}
    for coefficient in (0.25, 1.0):
        learner = make(*SHARED, f"algorithm.critic.coefficient={coefficient}")
        found[coefficient] = learner.update(training(learner, graded, ones))["loss"].value
    assert found[1.0] - found[0.25] == pytest.approx(0.75 * 0.5, abs=1e-6)


def test_it_learns_its_returns(make: Callable, graded: GradedBatch) -> None:
    learner = make(*SHARED)
    returns = graded.accuracy[:, None] * torch.ones(graded.tokens.shape)  # type: ignore[index]
    errors = [learner.update(training(learner, graded, returns, push=0.0))["critic/error"].value for _ in range(40)]
    assert errors[-1] < 0.1 * errors[0]


def test_the_cut_into_microbatches_changes_nothing(make: Callable, graded: GradedBatch) -> None:
    found = []
    for budget in (10_000, 1):
        learner = make(*SHARED, f"update.tokens_per_microbatch={budget}", "optimizer.learning_rate=1.0e-3")
        learner.update(training(learner, graded, torch.ones(graded.tokens.shape)))
        found.append((learner.values(graded), learner.logprobs(graded)))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)


def test_a_checkpoint_is_a_plain_model_and_keeps_the_values(make: Callable, graded: GradedBatch, tmp_path: Path) -> None:
    one, two = make(*SHARED), make(*SHARED)
    batch = training(one, graded, torch.ones(graded.tokens.shape))
    one.update(batch)
    one.save(tmp_path)
    two.load(tmp_path)
    assert two.values(graded).any()
    for learner in (one, two):
        learner.update(batch)
    torch.testing.assert_close(two.values(graded), one.values(graded), atol=0, rtol=0)
    _, told = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]


@pytest.mark.parametrize("lora", ["lora=null", "lora={rank: 2}"])
def test_a_run_with_one_learns_and_serves_the_policy(lora: str, tiny: Path, tmp_path: Path) -> None:
    small = ["data={name: chain, split: train, count: 20}", "rollout={prompts_per_step: 2, samples: 2, max_new_tokens: 8}"]
    chosen = [*small, "eval=null", "threads=1", "steps=2", lora, f"model={tiny}", f"output={tmp_path / 'run'}"]
    jobs.run(load(["quickstart", *SHARED, *chosen]), resume=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["parity"] < 1e-4 and "critic/error" in row for row in rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{shared: true, warmup_steps: 3}", "critic.warmup_steps is that of a model of its own"),
        ("{shared: true, learning_rate: 1.0e-3}", "critic.learning_rate is that of a model of its own"),
        ("{coefficient: 1}", "critic.coefficient is that of one that is shared"),
    ],
)
def test_a_setting_of_the_other_kind_is_refused(settings: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(["quickstart", "algorithm.advantage=gae", f"algorithm.critic={settings}"])
