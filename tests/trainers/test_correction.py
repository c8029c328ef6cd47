"""Off-policy correction: weights by hand, what they do to loss and gradient, and that nothing depends on how a batch is cut.

Against TRL's four modes: test_oracle_trl.py. What a recipe may say: tests/recipe/test_load.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlcore.batch import TrainingBatch
from rlcore.models import ModelSpec
from rlcore.recipe.load import load
from rlcore.recipe.schema import CORRECTIONS, KL, RL, Correction
from rlcore.run.metrics import merge, values
from trainers import algorithm
from trainers.build import build_learner, build_policy
from trainers.correction import importance_weights
from trainers.learner import Learner
from trainers.losses.ppo_clip import ppo_clip
from trainers.losses.ppo_clip_sequence import ppo_clip_sequence
from trainers.objective import LossInputs, Objective
from trainers.scorer import Pass

MASK = torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 1, 0]])
RATIOS = torch.tensor([[2.5, 1.2, 0.5], [1.9, 1.9, 7], [0.5, 0.8, 1]])  # of the completions: 1.5, 3.61, 0.4


def named(name: str | None, **bounds: float) -> Correction | None:
    return None if name is None else Correction.model_validate({"name": name, **bounds})


@pytest.mark.parametrize(
    ("name", "bounds", "weights", "tokens", "completions"),
    [
        (None, {}, [[1, 1, 1], [1, 1, 1], [1, 1, 1]], 0, 0),
        ("token_tis", {}, [[2, 1.2, 0.5], [1.9, 1.9, 2], [0.5, 0.8, 1]], 1, 1),
        ("token_mis", {}, [[0, 1.2, 0.5], [1.9, 1.9, 0], [0.5, 0.8, 1]], 1, 1),
        ("token_mis", {"floor": 0.6}, [[0, 1.2, 0], [1.9, 1.9, 0], [0, 0.8, 1]], 3, 2),
        ("sequence_tis", {}, [[1.5, 1.5, 1.5], [2, 2, 2], [0.4, 0.4, 0.4]], 2, 1),
        ("sequence_mis", {}, [[1.5, 1.5, 1.5], [0, 0, 0], [0.4, 0.4, 0.4]], 2, 1),
        ("sequence_mis", {"cap": 4, "floor": 0.6}, [[1.5, 1.5, 1.5], [3.61, 3.61, 3.61], [0, 0, 0]], 2, 1),
        ("icepop", {"floor": 0.6}, [[2.5, 1.2, 0], [1.9, 1.9, 0], [0, 0.8, 1]], 2, 2),
        ("bypass", {}, [[1, 1, 1], [1, 1, 1], [1, 1, 1]], 0, 0),
        ("bypass_token_mis", {"floor": 0.6}, [[0, 1, 0], [1, 1, 0], [0, 1, 1]], 3, 2),
        ("bypass_sequence_mis", {}, [[1, 1, 1], [0, 0, 0], [1, 1, 1]], 2, 1),
    ],
)
def test_weights_by_hand(
    name: str | None, bounds: dict[str, float], weights: list[list[float]], tokens: int, completions: int
) -> None:
    """Three completions with seven tokens in the loss; the cap is 2 where nothing else is said (of icepop, 5)."""
    correction = named(name, **bounds)
    found, _ = importance_weights(RATIOS.log(), MASK, correction)
    torch.testing.assert_close(found, torch.tensor(weights, dtype=torch.float32))
    zeros = torch.zeros_like(MASK)  # whichever policy is compared with the sampler has these ratios to it
    inputs = LossInputs(zeros, zeros, zeros, -RATIOS.log(), None, zeros, MASK)
    metrics = Objective(ppo_clip, correction=correction)(inputs).metrics
    assert metrics["importance/capped"].value == pytest.approx(tokens / 7)
    assert metrics["importance/capped_completions"].value == pytest.approx(completions / 3)


def test_a_ratio_beyond_any_float_is_a_large_number() -> None:
    far = torch.tensor([[800.0, 800], [-800, -800]])
    for level in ("token", "sequence"):
        correction = named(f"{level}_tis", cap=1e30)
        weights, _ = importance_weights(far, torch.ones(2, 2), correction)
        torch.testing.assert_close(weights, torch.tensor([[20.0, 20], [-20, -20]]).exp())


# -- loss and gradient -----------------------------------------------------------------------------------------------------


def random_inputs(seed: int, off_policy: float = 1.0) -> LossInputs:
    """Six completions, with holes in their masks. `off_policy` is the spread of log π_old − log π_rollout."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(6, 8, dtype=torch.float64, generator=generator)

    mask = (torch.arange(8) < torch.randint(1, 9, (6, 1), generator=generator)) * (torch.rand(6, 8, generator=generator) < 0.8)
    mask[:, 0] = True
    old = -4 * torch.rand(6, 8, dtype=torch.float64, generator=generator)
    return LossInputs(
        logprobs=(old + 0.05 * normal()).requires_grad_(),
        entropy=normal().abs(),
        old_logprobs=old,
        rollout_logprobs=old + off_policy * normal(),
        reference_logprobs=old + normal(),
        advantages=normal(),
        loss_mask=mask.double(),
    )


def losses(objective: Objective, inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Per token in the loss: its value, and the gradient of their sum on the log-probs."""
    per_token = objective(inputs).per_token * inputs.loss_mask
    return per_token.detach(), torch.autograd.grad(per_token.sum(), inputs.logprobs)[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CORRECTIONS)
def test_where_the_learner_sampled_itself_no_correction_changes_anything(name: str, seed: int) -> None:
    inputs = random_inputs(seed, off_policy=0.0)
    for corrected, plain in zip(
        losses(Objective(ppo_clip, KL(coefficient=0.1), named(name)), inputs),
        losses(Objective(ppo_clip, KL(coefficient=0.1)), inputs),
        strict=True,
    ):
        assert torch.equal(corrected, plain)


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("name", [name for name, meaning in CORRECTIONS.items() if meaning.form == "decoupled"])
def test_the_weight_is_a_constant_factor_of_the_policy_loss_and_not_of_the_kl_term(name: str, seed: int) -> None:
    """Loss and gradient are w times those of PPO, plus those of the KL term: none flows through w, though π_rollout, which is
    in nothing else, carries one here."""
    inputs = random_inputs(seed)
    weights, outside = importance_weights(inputs.old_logprobs - inputs.rollout_logprobs, inputs.loss_mask, named(name))
    assert (outside * inputs.loss_mask).any()
    moving = replace(inputs, rollout_logprobs=inputs.rollout_logprobs + inputs.logprobs - inputs.logprobs.detach())
    found = losses(Objective(ppo_clip, KL(coefficient=0.1), named(name)), moving)
    for corrected, ppo, with_kl in zip(
        found, losses(Objective(ppo_clip), inputs), losses(Objective(ppo_clip, KL(coefficient=0.1)), inputs), strict=True
    ):
        torch.testing.assert_close(corrected, weights * ppo + (with_kl - ppo))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("policy_loss", [ppo_clip, ppo_clip_sequence])
def test_bypass_is_ppo_against_the_sampler(policy_loss: Callable, seed: int) -> None:
    inputs = random_inputs(seed)
    against_the_sampler = replace(inputs, old_logprobs=inputs.rollout_logprobs)
    for bypass, plain in zip(
        losses(Objective(policy_loss, correction=named("bypass")), inputs),
        losses(Objective(policy_loss), against_the_sampler),
        strict=True,
    ):
        assert torch.equal(bypass, plain)
        assert bypass.any()


@pytest.mark.parametrize("name", ["bypass_token_mis", "bypass_sequence_mis"])
def test_bypass_masks_by_the_current_policy(name: str) -> None:
    """It, not π_old, has left the sampler in the second completion."""
    zeros = torch.zeros(2, 1)
    logprobs = torch.tensor([[1.1], [2.2]]).log().requires_grad_()
    inputs = LossInputs(logprobs, zeros, torch.tensor([[9.0], [0]]), zeros, None, torch.full((2, 1), -1.0), torch.ones(2, 1))
    value, gradient = losses(Objective(ppo_clip, correction=named(name)), inputs)
    torch.testing.assert_close(value, torch.tensor([[1.1], [0]]))
    torch.testing.assert_close(gradient, torch.tensor([[1.1], [0]]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [None, *CORRECTIONS])
def test_each_completion_is_corrected_alike_whatever_it_is_batched_with(name: str | None, seed: int) -> None:
    inputs, objective = random_inputs(seed), Objective(ppo_clip, correction=named(name))
    whole = objective(inputs)
    parts = []
    for rows in torch.randperm(6, generator=torch.Generator().manual_seed(seed)).split(4):
        width = int(inputs.loss_mask[rows].sum(0).nonzero().max()) + 1
        part = objective(cut(inputs, rows, width))
        torch.testing.assert_close(part.per_token, whole.per_token[rows][:, :width])
        parts.append(part.metrics)
    assert values(merge(parts)) == pytest.approx(values(whole.metrics))


def cut(inputs: LossInputs, rows: torch.Tensor, width: int) -> LossInputs:
    return replace(inputs, **{k: v[rows][:, :width] for k, v in vars(inputs).items() if isinstance(v, torch.Tensor)})


# -- the mismatch ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "token_tis", "bypass", "bypass_sequence_mis"])
def test_mismatch_by_hand_with_a_correction_and_without(name: str | None) -> None:
    """Ratios learner / sampler of 2 and 1/4, and of 100 at a token outside the loss; k1 = −log ρ, k3 = ρ − 1 − log ρ. In bypass
    the learner is the current policy, and π_old nobody's."""
    ratios, zeros = torch.tensor([[2.0, 0.25, 100]]), torch.zeros(1, 3)
    old = torch.full((1, 3), 9.0) if name and "bypass" in name else ratios.log()
    inputs = LossInputs(ratios.log(), zeros, old, zeros, None, zeros, torch.tensor([[1.0, 1, 0]]))
    metrics = values(Objective(ppo_clip, correction=named(name))(inputs).metrics)
    assert metrics["kl/rollout"] == pytest.approx(math.log(2) / 2)  # (−log 2 + log 4) / 2
    assert metrics["kl/rollout_k3"] == pytest.approx((2 - 1 + 0.25 - 1 + math.log(2)) / 2)
    assert metrics["importance/ratio_max"] == pytest.approx(2)
    assert metrics["importance/capped"] == metrics["importance/capped_completions"] == 0


def test_a_mismatch_of_rounding_errors_is_not_lost_in_those_of_k3() -> None:
    """float32, differences of about 1e-5: k3 is their half mean square, 5e-11, where exp(−d) + d − 1 is noise of 1e-8."""
    difference = 1e-5 * torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(1, 1000)
    inputs = LossInputs(zeros, zeros, difference, zeros, None, zeros, torch.ones(1, 1000))
    k3 = Objective(ppo_clip)(inputs).metrics["kl/rollout_k3"].value
    assert k3 == pytest.approx((difference**2 / 2).mean().item(), rel=0.05)


# -- the learner -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_learner(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Learner]:
    def make(correction: str, **update: int) -> Learner:
        chosen = f"algorithm={{aggregate: token_mean, loss: ppo_clip, correction: {correction}}}"
        recipe = load(["quickstart", chosen, f"update={update}", "optimizer.max_grad_norm=1.0e+9", "device=cpu"]).recipe
        assert isinstance(recipe, RL)
        return build_learner(recipe, build_policy(recipe, tiny_spec.location), tokenizer, algorithm.objective(recipe))

    return make


@pytest.fixture
def training(make_batch: Callable, make_learner: Callable) -> TrainingBatch:
    """Sampled by a policy that is near the tiny model: log-probs differ by 0.3 or so."""
    graded = make_batch([1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1], [5, 1, 7, 3, 9, 2])
    generator = torch.Generator().manual_seed(5)
    noise = 0.3 * torch.randn(graded.tokens.shape, generator=generator)
    rollout = (make_learner("null").logprobs(graded) + noise) * graded.present
    return TrainingBatch(replace(graded, rollout_logprobs=rollout), torch.randn(noise.shape, generator=generator), None)


@pytest.mark.parametrize("correction", ["{name: token_mis, cap: 1.2}", "{name: bypass_sequence_mis, cap: 1.2}"])
def test_what_is_masked_stays_in_the_denominators_of_the_whole_batch(
    make_learner: Callable, training: TrainingBatch, correction: str
) -> None:
    """In one micro-batch, several, or one completion each: the same gradient; and it is that of the written sum over 27 tokens,
    however many are left."""
    found = []
    for budget in (10_000, 25, 1):
        learner = make_learner(correction, tokens_per_microbatch=budget)
        learner.backend.optimizer.register_step_pre_hook(
            lambda *_, learner=learner: found.append({name: p.grad.clone() for name, p in learner.parameters.items()})
        )
        metrics = learner.update(training)
        assert 0.1 < metrics["importance/capped"].value < 0.9
    learner, graded = make_learner(correction), training.graded
    logprobs, _ = learner.forward(graded, Pass(list(range(6)), True, 1))
    log_ratio = logprobs.detach() - graded.rollout_logprobs
    weights, outside = importance_weights(log_ratio, graded.loss_mask, learner.objective.correction)
    assert (outside * graded.loss_mask).any()
    ratio = log_ratio.exp() if learner.objective.bypasses else torch.ones_like(log_ratio)
    unclipped = torch.where(training.advantages > 0, ratio < 1.2, ratio > 0.8)
    factors = -training.advantages * ratio * unclipped * weights * graded.loss_mask / 27
    (factors * logprobs).sum().backward()
    for name, p in learner.parameters.items():
        for gradient in found:
            torch.testing.assert_close(gradient[name], p.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("correction", "passes"), [("null", 1), ("token_tis", 1), ("bypass", 0), ("bypass_token_mis", 0)])
def test_bypass_saves_the_pass_before_the_first_of_several_updates(
    make_learner: Callable, training: TrainingBatch, monkeypatch: pytest.MonkeyPatch, correction: str, passes: int
) -> None:
    learner = make_learner(correction, minibatches=2)
    asked, logprobs = [], learner.logprobs
    monkeypatch.setattr(learner, "logprobs", lambda batch: asked.append(batch) or logprobs(batch))
    learner.update(training)
    assert learner.updates == 2
    assert len(asked) == passes


@pytest.mark.parametrize("correction", ["null", "sequence_tis", "bypass", "bypass_sequence_mis"])
def test_the_mismatch_is_that_of_the_learner_and_the_sampler(
    make_learner: Callable, training: TrainingBatch, correction: str
) -> None:
    learner, graded = make_learner(correction), training.graded
    difference = ((graded.rollout_logprobs - learner.logprobs(graded)) * graded.loss_mask).sum() / graded.loss_mask.sum()
    assert abs(difference) > 1e-3
    assert learner.update(training)["kl/rollout"].value == pytest.approx(difference.item(), abs=1e-6)
