"""The critic: its loss by hand, where it reads its values, that it learns, and that it and the policy are one learner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from rlcore.batch import GradedBatch, TrainingBatch
from rlcore.models import ModelSpec
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from tests.conftest import learner_of
from trainers import algorithm
from trainers.build import build_critic, build_learner
from trainers.critic import ActorCritic, Critic, ValueInputs, ValueObjective


@pytest.fixture
def make(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Critic]:
    def made(*overrides: str) -> Critic:
        chosen = ["quickstart", "device=cpu", "steps=10", "algorithm.critic={learning_rate: 1.0e-2}", *overrides]
        recipe = load(chosen).recipe
        assert isinstance(recipe, RL)
        return build_critic(recipe, tiny_spec.location, tokenizer)

    return made


@pytest.fixture
def graded(make_batch: Callable) -> GradedBatch:
    batch: GradedBatch = make_batch([1, 0, 1, 0], [0, 0, 1, 1], [5, 1, 7, 3])
    return batch


def valued(critic: Critic, graded: GradedBatch, returns: torch.Tensor) -> TrainingBatch:
    graded = replace(graded, values=critic.values(graded))
    return TrainingBatch(graded, torch.zeros(graded.tokens.shape), None, returns)


@pytest.mark.parametrize(
    ("value", "old", "loss", "gradient"),
    [
        (0.5, 0.5, 0.125, -0.5),  # nothing clipped: half the square
        (0.9, 0.5, 0.045, 0.0),  # V has moved further than 0.2 towards R: the clipped one is worse, and has no gradient
        (0.1, 0.5, 0.405, -0.9),  # away from R: its own error is the worse one
    ],
)
def test_the_value_loss_by_hand(value: float, old: float, loss: float, gradient: float) -> None:
    """R = 1, clip 0.2."""
    values = torch.tensor([[value]], requires_grad=True)
    inputs = ValueInputs(values, torch.tensor([[old]]), torch.ones(1, 1), torch.ones(1, 1))
    found = ValueObjective(0.2)(inputs).per_token
    found.sum().backward()
    assert found.item() == pytest.approx(loss)
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(gradient)


def test_a_value_is_that_of_the_state_before_its_token(make: Callable, graded: GradedBatch) -> None:
    """The head of the checkpoint's model at the position that predicts the token, in a plain transformers forward pass."""
    critic = make()
    torch.nn.init.normal_(critic.model.score.weight)
    found = critic.values(graded)
    for i, prompt in enumerate(graded.prompt_ids):
        length = int(graded.lengths[i])
        ids = torch.tensor([[*prompt, *graded.tokens[i, :length].tolist()]])
        with torch.no_grad():
            expected = critic.model.eval()(ids).logits[0, len(prompt) - 1 : -1, 0]
        torch.testing.assert_close(found[i, :length], expected)
        assert not found[i, length:].any()


def test_it_begins_at_zero_and_learns_its_returns(make: Callable, graded: GradedBatch) -> None:
    critic = make("algorithm.critic.clip=null")
    assert not critic.values(graded).any()
    returns = graded.accuracy[:, None] * torch.ones(graded.tokens.shape)  # type: ignore[index]
    errors = [critic.update(valued(critic, graded, returns))["error"].value for _ in range(40)]
    assert errors[0] == pytest.approx((returns * graded.present).sum().item() / 16)
    assert errors[-1] < 0.1 * errors[0]


def test_the_cut_into_microbatches_changes_nothing(make: Callable, graded: GradedBatch) -> None:
    found = []
    for budget in (10_000, 1):
        critic = make(f"update.tokens_per_microbatch={budget}")
        returns = torch.randn(graded.tokens.shape, generator=torch.Generator().manual_seed(1))
        critic.update(valued(critic, graded, returns))
        found.append(critic.values(graded))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)


def test_the_policy_waits_until_the_critic_is_warm_also_over_a_resume(
    make: Callable, graded: GradedBatch, tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    def both() -> ActorCritic:
        return ActorCritic(learner_of(tiny_spec.load(), tokenizer, total_steps=10), make(), warmup_steps=2)

    one, folder = both(), tmp_path / "policy"
    batch = replace(valued(one.critic, graded, torch.ones(graded.tokens.shape)), advantages=torch.ones(graded.tokens.shape))  # type: ignore[arg-type]
    assert "loss" not in one.update(batch)
    folder.mkdir()
    one.save(folder)
    two = both()
    two.load(folder)
    for learner in (one, two):
        assert "loss" not in learner.update(batch)
        learned = learner.update(batch)
        assert {"loss", "critic/loss", "critic/error", "grad_norm", "critic/grad_norm"} <= learned.keys()
    torch.testing.assert_close(two.critic.values(graded), one.critic.values(graded), atol=0, rtol=0)
    torch.testing.assert_close(two.logprobs(graded), one.logprobs(graded), atol=0, rtol=0)
    head = AutoModelForTokenClassification.from_pretrained(folder / "critic" / "model").score.weight
    assert head.any()


def test_the_policys_schedule_counts_the_steps_that_it_learns_in(
    tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> None:
    recipe = load(["quickstart", "algorithms/vapo", "device=cpu", "steps=30"]).recipe
    assert isinstance(recipe, RL)
    learner = build_learner(recipe, tiny_spec.load(), tokenizer, algorithm.objective(recipe))
    assert learner.total_updates == 20
