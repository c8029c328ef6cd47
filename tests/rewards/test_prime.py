"""PRIME's rewards: what they are, that their model learns from what was verified, when, and what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rewards.process.prime import Prime
from rlcore.batch import GradedBatch, batch_from
from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.protocols import Reward
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from rlcore.types import Completion, Group, Problem, Sampling, Score, Scored
from trainers.build import build_implicit
from trainers.implicit import ImplicitInputs, ImplicitObjective
from trainers.plan import plan


class Even(Reward):
    """A verifiable reward that a random model gets right now and then."""

    verifiable = True

    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        return [Scored(float(c.token_ids[0] % 2 == 0)) for group in groups for c in group.completions]


class Fixed:
    """Log-probs that do not depend on the tokens; remembers at which temperature they were asked for."""

    def __init__(self, *logprobs: float) -> None:
        self.row = torch.tensor([logprobs])
        self.temperatures: list[float] = []

    def logprobs(self, batch: GradedBatch) -> Tensor:
        self.temperatures.append(batch.sampling.temperature)
        return self.row.expand(batch.tokens.shape)


def completion(sample: int, *tokens: int, forced: int = 0) -> Completion:
    """Of which the first `forced` tokens were not sampled by the policy, the others at temperature ½."""
    mask = (0,) * forced + (1,) * (len(tokens) - forced)
    zeros = (0.0,) * len(tokens)
    return Completion(
        "p", sample, sample, (5, 6), tokens, mask, zeros, (0,) * len(tokens), Sampling(temperature=0.5), "stop", ""
    )


def test_worked_values() -> None:
    """Log-ratios 2, −1, 3 at β = 0.05; a token that was forced is paid nothing."""
    reward, learner, reference = Prime(), Fixed(-1, -3, -2), Fixed(-3, -2, -5)
    reward.learn_with(learner, reference)  # type: ignore[arg-type]
    group = Group(Problem("p", "?", "1"), [completion(0, 7, 8, 9), completion(1, 7, 8, 9, forced=1)])
    whole, part = reward.score([group], None)
    assert isinstance(whole, Scored)
    assert isinstance(part, Scored)
    assert whole.per_token == pytest.approx((0.1, -0.05, 0.15))
    assert (whole.value, whole.reason) == (pytest.approx(0.2), "P(right) 0.55")
    assert part.per_token == pytest.approx((0, -0.05, 0.15))
    assert learner.temperatures == reference.temperatures == [1]


@pytest.mark.parametrize(("accuracy", "loss", "gradient"), [(1.0, 0.598139, -0.450166), (0.0, 0.798139, 0.549834)])
def test_the_loss_by_hand(accuracy: float, loss: float, gradient: float) -> None:
    """Of the log-odds 0.2, spread over the three tokens in the loss; its gradient is β · (P(right) − accuracy) at each."""
    log_ratio = torch.tensor([[2.0, -1, 3, 0]], requires_grad=True)
    found = ImplicitObjective(0.05)(ImplicitInputs(log_ratio, torch.tensor([[1.0, 1, 1, 0]]), torch.tensor([accuracy])))
    found.per_token.sum().backward()
    assert found.per_token[0].tolist() == pytest.approx([loss / 3] * 3 + [0], abs=1e-6)
    assert log_ratio.grad is not None
    assert log_ratio.grad[0].tolist() == pytest.approx([0.05 * gradient] * 4)
    assert found.metrics["accuracy"].value == accuracy


Make = Callable[..., Prime]


@pytest.fixture
def make(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Make:
    """A component with real models, in a recipe with these overrides."""

    def made(*overrides: str) -> Prime:
        reward = Prime(beta=1.0, learning_rate=1e-3)
        recipe = load(["quickstart", "device=cpu", "steps=10", *overrides]).recipe
        assert isinstance(recipe, RL)
        reward.learn_with(*build_implicit(recipe, reward, tiny_spec.location, tokenizer))
        return reward

    return made


COMPLETIONS = [completion(0, 7, 8, 9), completion(1, 9, 9), completion(2, 30, 31, 32, 33, forced=1), completion(3, 12)]
GROUPS = [Group(Problem("p", "?", "1"), COMPLETIONS, (1.0, 0.0, 1.0, 0.0))]


def graded(which: Sequence[int] = range(4)) -> GradedBatch:
    """Of the completions that could be judged."""
    some, accuracy = [COMPLETIONS[i] for i in which], torch.tensor([1.0, 0, 1, 0])[list(which)]
    return batch_from(some, Sampling(temperature=0.5), group=[0] * len(which), rewards={}, accuracy=accuracy)


def rewards(reward: Prime) -> list[tuple[float, ...]]:
    return [score.per_token for score in reward.score(GROUPS, None) if isinstance(score, Scored) and score.per_token]


def test_it_pays_nothing_before_it_has_learned_and_the_plain_log_ratio_then(make: Make, tiny_spec: ModelSpec) -> None:
    """As transformers computes it from the checkpoint that it writes, against the model that it began as."""
    reward = make()
    assert not any(any(each) for each in rewards(reward))
    reward.update(GROUPS, graded(), None)
    found = rewards(reward)
    assert reward.learner is not None
    now, before = reward.learner.model.eval(), tiny_spec.load().eval()  # type: ignore[attr-defined]
    for each, row in zip(COMPLETIONS, found, strict=True):
        ids = torch.tensor([[*each.prompt_ids, *each.token_ids]])
        with torch.no_grad():
            one, other = (model(ids).logits.log_softmax(-1)[0, 1:-1] for model in (now, before))
        expected = (one - other)[range(len(each.token_ids)), list(each.token_ids)] * torch.tensor(each.loss_mask)
        assert any(row)
        assert row == pytest.approx(expected.tolist(), abs=1e-5)


def test_it_learns_what_is_right(make: Make) -> None:
    """On a batch that stays the same. At first every P(right) is ½: the loss is log 2, and half are on the right side."""
    reward = make()
    reported = []
    for _ in range(15):
        reward.score(GROUPS, None)
        reported.append(reward.update(GROUPS, graded(), None)[1])
    losses = [metrics["loss"].value for metrics in reported]
    assert losses[0] == pytest.approx(0.693147)
    assert reported[0]["accuracy"].value == 0.5
    assert losses[-1] < 0.1
    assert reported[-1]["accuracy"].value == 1
    assert [score.value > 0 for score in reward.score(GROUPS, None) if isinstance(score, Scored)] == [True, False, True, False]


def test_it_learns_from_what_was_judged_alone(make: Make) -> None:
    """An invalid completion was scored too, and is not in the batch: the update is that of the others alone."""
    one, other = make(), make()
    one.score(GROUPS, None)
    one.update(GROUPS, graded([0, 1]), None)
    other.score([replace(GROUPS[0], completions=COMPLETIONS[:2], accuracy=(1.0, 0.0))], None)
    other.update(GROUPS, graded([0, 1]), None)
    assert rewards(one) == rewards(other)
    one.update(GROUPS, graded([]), None)
    assert rewards(one) == rewards(other)


def test_the_cut_into_microbatches_changes_nothing(make: Make) -> None:
    found = []
    for budget in (10_000, 1):
        reward = make(f"update.tokens_per_microbatch={budget}")
        reward.score(GROUPS, None)
        reward.update(GROUPS, graded(), None)
        found.append([r for row in rewards(reward) for r in row])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_it_needs_something_verifiable() -> None:
    with pytest.raises(UserError, match="reward 'prime' reads accuracy, and no reward component is verifiable: add `answer`"):
        plan(load(["quickstart", "eval=null", "rewards=[prime]"]).recipe)  # type: ignore[arg-type]


EVEN = "{name: '%s:Even'}"
PAID = f"rewards=[{EVEN % __name__}, {{name: prime, learning_rate: 1.0e-3, beta: 1}}]"


def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(
    launch: Callable[..., Path], steps: Callable[[Path], list[dict[str, float]]]
) -> None:
    """The first step pays nothing, as its scores are from before its update; then its model goes on where it was."""
    settings = [PAID, "algorithm.advantage=prime", "optimizer.learning_rate=1e-3"]
    whole = launch("whole", *settings)
    launch("broken", *settings, "steps=2")
    broken = launch("broken", *settings, resume=True)
    rows = steps(whole)
    assert steps(broken) == rows
    assert [bool(row["reward/prime"]) for row in rows] == [False, True, True]
    assert rows[0]["prime/loss"] == pytest.approx(0.693147, abs=1e-6)
    assert {"prime/accuracy", "prime/grad_norm", "prime/learning_rate"} <= rows[0].keys()
    learned = [folder / "checkpoints" / "step-3" / "reward-prime" for folder in (whole, broken)]
    one, other = (load_file(folder / "learner.safetensors") for folder in learned)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    plain = AutoModelForCausalLM.from_pretrained(learned[0] / "model")
    weights = dict(plain.named_parameters())
    assert all(torch.equal(weights[name], one[f"parameter/{name}"]) for name in weights if f"parameter/{name}" in one)
