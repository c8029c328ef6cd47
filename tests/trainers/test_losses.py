"""The policy losses of `trainers/losses`: values and gradients by hand, and what holds for every one of them.

PPO's own clip and the other terms of the objective: test_objective.py. Against TRL: test_oracle_trl.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlcore import plugins
from rlcore.batch import GradedBatch, TrainingBatch, rows
from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from rlcore.run.metrics import Metrics, merge
from rlcore.types import Sampling
from tests.conftest import batch_of
from trainers import algorithm
from trainers.build import build_learner, build_policy
from trainers.covariance import covariance, highest, lots
from trainers.losses.cispo import Cispo
from trainers.losses.clip_cov import ClipCov
from trainers.losses.drpo import Drpo
from trainers.losses.dual_clip import dual_clip
from trainers.losses.gpg import gpg
from trainers.losses.gspo import gspo
from trainers.losses.kl_cov import KlCov
from trainers.losses.ppo_clip import ppo_clip
from trainers.losses.sapo import sapo
from trainers.losses.two_sided_clip import TwoSidedClip
from trainers.objective import LossInputs, Objective, token_weights


def inputs_of(logprobs: Any, advantages: Any, old: Any = 0.0, mask: Any = 1.0) -> LossInputs:
    """Log-probs (b, t) with gradient, in float64; what else is given is spread over their shape."""
    leaf = torch.as_tensor(logprobs, dtype=torch.float64).clone().requires_grad_()

    def spread(values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float64).expand_as(leaf).clone()

    old = spread(old)
    return LossInputs(leaf, torch.zeros_like(old), old, old, None, spread(advantages), spread(mask))


def of_ratios(ratios: Any, advantages: Any, mask: Any = 1.0) -> LossInputs:
    """Tokens whose log π is log r, as the old policy's is 0."""
    return inputs_of(torch.tensor(ratios, dtype=torch.float64).log(), advantages, mask=mask)


# -- values and gradients by hand -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "ratio", "advantage", "value", "gradient"),
    [
        (dual_clip, 5.0, -2.0, 6.0, 0.0),  # −A·c, not 10
        (dual_clip, 2.0, -2.0, 4.0, 4.0),  # below c: −A·r, as in PPO
        (dual_clip, 0.5, -2.0, 1.6, 0.0),  # PPO's lower clip
        (dual_clip, 5.0, 2.0, -2.4, 0.0),  # A > 0: PPO's upper clip
        (dual_clip, 1.1, 2.0, -2.2, -2.2),
        (dual_clip, 5.0, 0.0, 0.0, 0.0),
        (partial(dual_clip, bound=1.1), 1.15, -2.0, 2.2, 0.0),  # a bound within PPO's range
        (TwoSidedClip(), 5.0, -2.0, 8.0, 0.0),
        (TwoSidedClip(), 3.0, -2.0, 6.0, 6.0),
        (TwoSidedClip(delta=1.3), 1.4, -2.0, 2.6, 0.0),
        (TwoSidedClip(), 5.0, 2.0, -2.4, 0.0),
        (TwoSidedClip(clip_low=0.3, clip_high=0.5), 5.0, 2.0, -3.0, 0.0),
        (gpg, math.exp(-0.5), 2.0, 1.0, -2.0),
        (gpg, math.exp(-0.5), -2.0, -1.0, 2.0),
        (Cispo(), 1.5, 2.0, -3 * math.log(1.5), -3.0),
        (Cispo(), 8.0, 2.0, -10 * math.log(8), -10.0),  # bounded, and still with a gradient
        (Cispo(), 8.0, -2.0, 10 * math.log(8), 10.0),
        (Cispo(), 0.25, 2.0, -0.5 * math.log(0.25), -0.5),  # no lower bound
        (Cispo(ratio_min=0.5), 0.25, 2.0, -math.log(0.25), -1.0),
        (Cispo(ratio_max=1.2), 1.5, 2.0, -2.4 * math.log(1.5), -2.4),
        (sapo, 1.0, 2.0, -4.0, -2.0),  # half open: −A/2 · 4
        (sapo, 1.0, -2.0, 4 / 1.05, 2.0),
        (sapo, 1.5, 2.0, -4.979674, -2.820044),  # σ(0.5) = 0.622459
        (sapo, 1.5, -2.0, 4.787166, 2.802411),  # σ(0.525) = 0.628316
        (partial(sapo, temperature_negative=2.0), 1.5, -2.0, 4 * 0.731059, 2.359343),  # σ(1) = 0.731059
        (sapo, 1.5, 0.0, 0.0, 0.0),
    ],
)
def test_worked_values_and_gradients(loss: Callable, ratio: float, advantage: float, value: float, gradient: float) -> None:
    inputs = of_ratios([[ratio]], advantage)
    per_token = loss(inputs).per_token
    per_token.sum().backward()
    assert per_token.item() == pytest.approx(value, abs=1e-5)
    assert inputs.logprobs.grad.item() == pytest.approx(gradient, abs=1e-5)


def test_the_share_of_tokens_that_a_bound_holds_is_counted_in_the_loss_only() -> None:
    """Ratios 5 and 2 with A < 0, 5 with A > 0, 5 with A < 0 outside the loss."""
    inputs = of_ratios([[5.0, 2.0, 5.0, 5.0]], [[-1.0, -1, 1, -1]], mask=[[1.0, 1, 1, 0]])
    for dual in (dual_clip, TwoSidedClip()):
        metrics = dual(inputs).metrics
        assert metrics["dual_clip_fraction"].value == pytest.approx(1 / 3)
        assert metrics["clip_fraction"].value == pytest.approx(1 / 3)
    assert Cispo(ratio_max=4.0)(inputs).metrics["clip_fraction"].value == pytest.approx(2 / 3)
    assert sapo(inputs).metrics["ratio/max"].value == pytest.approx(5)


def test_two_sided_clip_is_dual_clip_above_ppos_range() -> None:
    """As the docstring says, for any ratio and advantage: by INTELLECT-2's formula written out."""
    generator = torch.Generator().manual_seed(0)
    ratio = torch.linspace(0.05, 8, 400, dtype=torch.float64)[None]
    advantages = torch.randn(ratio.shape, dtype=torch.float64, generator=generator)
    inputs = of_ratios(ratio.tolist(), advantages)
    written = torch.maximum(-advantages * ratio.clamp(max=4.0), -advantages * ratio.clamp(0.8, 1.28))
    for loss in (TwoSidedClip(delta=4.0, clip_high=0.28), partial(dual_clip, bound=4.0, clip_high=0.28)):
        torch.testing.assert_close(loss(inputs).per_token, written)


@pytest.mark.parametrize(
    ("clip_high", "advantages", "value", "gradient"),
    [
        (0.5, [2.0, 2, 9], -2.2, [-1.1, -1.1, 0]),  # s = √(1.21 · 1) = 1.1
        (4e-4, [2.0, 2, 9], -2.0008, [0.0, 0, 0]),  # clipped as a whole
        (0.5, [2.0, 0, 9], -1.1, [-1.1, 0, 0]),  # advantages by token: each has its own gradient, not half of both
    ],
)
def test_gspos_ratio_is_the_geometric_mean_of_a_completion(
    clip_high: float, advantages: list[float], value: float, gradient: list[float]
) -> None:
    """Tokens of ratios 1.21 and 1, and one outside the loss, with `sequence_mean`."""
    inputs = of_ratios([[1.21, 1.0, 7.0]], [advantages], mask=[[1.0, 1, 0]])
    total = (gspo(inputs, clip_high=clip_high).per_token * token_weights(inputs.loss_mask, "sequence_mean", 10)).sum()
    total.backward()
    assert total.item() == pytest.approx(value, abs=1e-9)
    assert inputs.logprobs.grad[0].tolist() == pytest.approx(gradient, abs=1e-9)


def test_gspos_ratio_is_bounded() -> None:
    loss = gspo(inputs_of([[15.0, 15.0]], -1.0))
    assert loss.per_token[0].tolist() == pytest.approx([math.exp(10)] * 2)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("dual_clip", {"bound": 1.0}, "'dual_clip': bound cannot be 1.0: .* greater than 1"),
        ("two_sided_clip", {"delta": 1.2}, r"two_sided_clip: delta must be above 1 \+ clip_high \(1.2\), not 1.2"),
        ("two_sided_clip", {"delta": 1.3, "clip_high": 0.4}, r"delta must be above 1 \+ clip_high \(1.4\)"),
        ("cispo", {"ratio_max": 0.2}, "cispo: ratio_max is a ratio π/π_old, not a distance from 1: .* not 0.2"),
        ("cispo", {"ratio_min": 1.5}, "cispo: ratio_min is a ratio"),
        ("sapo", {"temperature_positive": 0.0}, "'sapo': temperature_positive cannot be 0.0: .* greater than 0"),
        ("sapo", {"temperature_negative": -1.0}, "'sapo': temperature_negative cannot be -1.0"),
        ("clip_cov", {"share": 0.0}, "'clip_cov': share cannot be 0.0: .* greater than 0"),
        ("kl_cov", {"share": 1.5}, "'kl_cov': share cannot be 1.5: .* less than or equal to 1"),
        ("clip_cov", {"covariance_low": 5.0}, r"clip_cov: covariance_low \(5\) must be below covariance_high \(5\)"),
        ("drpo", {"length_temperature": 0.0}, "'drpo': length_temperature cannot be 0.0"),
        ("ppo_clip", {"clip_low": 28}, "'ppo_clip': clip_low cannot be 28: .* less than 1"),
        ("gspo", {"clip_low": "wide"}, "'gspo': clip_low cannot be 'wide': .* valid number"),
        ("drpo", {"temperature": -1.0}, "'drpo': temperature cannot be -1.0"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(name: str, options: dict[str, float], complaint: str) -> None:
    """When the recipe's objective is made: before a model is loaded."""
    recipe = load(
        ["quickstart", f"algorithm.loss={{name: {name}, {', '.join(f'{k}: {v}' for k, v in options.items())}}}"]
    ).recipe
    with pytest.raises(UserError, match=complaint):
        algorithm.objective(recipe)


# -- covariances ------------------------------------------------------------------------------------------------------------


def test_covariance_is_of_the_tokens_in_the_loss_alone() -> None:
    """The worked example of clip_cov: means 0 and −3; a fifth token outside the loss would move both."""
    mask = [[1.0, 1], [1, 1], [0, 0]]
    inputs = inputs_of([[-1.0, -5], [-3, -3], [7, 7]], [[1.0, 1], [-1, -1], [50, 50]], mask=mask)
    found = covariance(inputs)
    assert found[:2].tolist() == [[2, -2], [0, 0]]
    assert (found[2] == -torch.inf).all()


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.01, [[0, 1, 0], [0, 0, 0]]),  # at least one
        (0.5, [[0, 1, 0], [0, 1, 0]]),  # two of four
        (0.75, [[1, 1, 0], [0, 1, 0]]),  # three
        (1.0, [[1, 1, 0], [0, 1, 0]]),  # never one of −inf
    ],
)
def test_highest_takes_a_share_of_the_tokens_in_the_loss(share: float, expected: list[list[float]]) -> None:
    values = torch.tensor([[1.0, 9, 99], [-torch.inf, 8, 99]])
    assert highest(values, share, torch.tensor([[1.0, 1, 0], [1, 1, 0]])).tolist() == expected


def test_highest_takes_equal_values_together_and_nothing_of_nothing() -> None:
    ones = torch.ones(1, 3)
    assert highest(torch.tensor([[2.0, 1, 2]]), 0.1, ones).tolist() == [[1, 0, 1]]
    assert highest(ones, 0.5, 0 * ones).tolist() == [[0, 0, 0]]


def test_clip_cov_silences_a_token_whose_covariance_is_in_the_range() -> None:
    """Of the worked example: cov = 2, −2, 0, 0. The others are PPO's; the token stays in the denominator."""
    batch = batch_of([1, 0], [0, 0], [2, 2])
    inputs = inputs_of([[-1.0, -5], [-3, -3]], [[1.0, 1], [-1, -1]], old=[[-1.1, -5], [-3, -3]])
    loss = ClipCov()
    prepared = loss.prepare(lambda: inputs, batch)
    assert prepared["silenced"].tolist() == [[1, 0], [0, 0]]
    found = loss(replace(inputs, prepared=prepared))
    expected = ppo_clip(inputs).per_token.detach().clone()
    expected[0, 0] = 0
    torch.testing.assert_close(found.per_token, expected)
    found.per_token.sum().backward()
    assert inputs.logprobs.grad.tolist() == [[0, -1], [1, 1]]
    assert found.metrics["covariance/silenced"].value == 0.25
    for low, high in ((2.0, 5.0), (1.0, 2.0)):  # open at both ends
        assert not ClipCov(covariance_low=low, covariance_high=high).prepare(lambda: inputs, batch)["silenced"].any()


@pytest.mark.parametrize(
    ("penalised", "ratio", "value", "gradient"),
    [(1, 1.5, -3 + 0.405465, -2.0), (0, 1.5, -3.0, -3.0), (1, 0.5, -1 + 0.693147, -2.0), (1, 1.0, -2.0, -2.0)],
)
def test_kl_cov_holds_the_penalised_tokens(penalised: int, ratio: float, value: float, gradient: float) -> None:
    """A = 2: −A·r + |log r|, of gradient −A·r + sign(log r); no clip at 1.2."""
    inputs = replace(of_ratios([[ratio]], 2.0), prepared={"penalised": torch.tensor([[float(penalised)]])})
    found = KlCov()(inputs)
    found.per_token.sum().backward()
    assert found.per_token.item() == pytest.approx(value, abs=1e-6)
    assert inputs.logprobs.grad.item() == pytest.approx(gradient, abs=1e-6)
    assert found.metrics["covariance/penalised"].value == penalised


def test_kl_cov_penalises_the_highest_covariances_and_only_positive_ones() -> None:
    """Advantages 1, 1, −1, −1 and log-probs −1, −2, −4, −5 (mean −3): cov = 2, 1, 1, 2; with equal advantages all are 0."""
    batch = batch_of([1, 0], [0, 0], [2, 2])
    inputs = inputs_of([[-1.0, -2], [-4, -5]], [[1.0, 1], [-1, -1]])
    assert KlCov(share=0.5).prepare(lambda: inputs, batch)["penalised"].tolist() == [[1, 0], [0, 1]]
    assert KlCov(share=1.0).prepare(lambda: inputs, batch)["penalised"].tolist() == [[1, 1], [1, 1]]
    alike = replace(inputs, advantages=torch.ones(2, 2))
    assert not KlCov(share=1.0).prepare(lambda: alike, batch)["penalised"].any()
    opposed = replace(inputs, advantages=-inputs.advantages)
    assert not KlCov(share=1.0).prepare(lambda: opposed, batch)["penalised"].any()


def test_lots_are_drawn_by_what_a_completion_is() -> None:
    """Not by its row, its padding, or any generator of the process."""
    batch = batch_of([1, 0, 1], [0, 0, 0], [3, 5, 2])
    state = torch.get_rng_state()
    drawn = lots(batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(lots(rows(batch, [2, 0, 1])), drawn[[2, 0, 1]])
    wider = torch.nn.functional.pad(batch.tokens, (0, 2), value=7)
    padded = {
        name: torch.nn.functional.pad(getattr(batch, name), (0, 2)) for name in ("present", "loss_mask", "rollout_logprobs")
    }
    wide = replace(batch, tokens=wider, versions=0 * wider, rewards={"answer": 0.0 * wider}, **padded)
    assert torch.equal(lots(wide)[:, :5], drawn)
    inside = drawn[batch.present.bool()]
    assert len(inside.unique()) == len(inside)
    for other in (
        replace(batch, tokens=batch.tokens + 1),
        replace(batch, versions=batch.versions + 1),
        replace(batch, prompt_ids=[(9,)] * 3),
    ):
        assert not (lots(other) == drawn)[batch.present.bool()].any()


def test_every_candidate_is_drawn_equally_often() -> None:
    """Four tokens of equal covariance, 400 completions: 100 each, ± five standard deviations. The first token alone, or any
    fixed one, would have them all."""
    counts = torch.zeros(4)
    for seed in range(400):
        counts += highest(lots(batch_of([1], [0], [4], seed)), 0.25, torch.ones(1, 4))[0]
    assert counts.sum() == 400
    assert ((counts - 100).abs() < 5 * math.sqrt(400 * 0.25 * 0.75)).all()


def doubled(batch: GradedBatch, **changes: Any) -> GradedBatch:
    """For log-probs in float64."""
    return replace(batch, loss_mask=batch.loss_mask.double(), **changes)


# -- DRPO -------------------------------------------------------------------------------------------------------------------


def plain_drpo(inputs: LossInputs, batch: GradedBatch, weighting: float, tau: float, delta: float, beta: float) -> Tensor:
    """The formula as it is written, on a whole mini-batch."""
    mask = inputs.loss_mask
    lengths = mask.sum(1)
    scores = (inputs.logprobs * mask).sum(1) / lengths
    objectives = []
    for question in batch.group.unique():
        right = ((batch.group == question) & (batch.accuracy == 1)).nonzero()[:, 0].tolist()
        wrong = ((batch.group == question) & (batch.accuracy == 0)).nonzero()[:, 0].tolist()
        if not right or not wrong:
            objectives.append(torch.zeros(()))
            continue
        weights = [math.exp((1 - float(lengths[i]) / batch.sampling.max_new_tokens) / weighting) for i in right]
        repulsion = tau * torch.log(sum(torch.exp(scores[j] / tau) for j in wrong))
        objectives.append(sum(w * (scores[i] - repulsion) for w, i in zip(weights, right, strict=True)) / sum(weights))
    kl = ((inputs.old_logprobs - inputs.logprobs) * mask).sum() / mask.sum()
    return -torch.stack(objectives).mean() + (beta * (kl - delta)).clamp(min=0).detach() * kl


def drpo_batch(seed: int, drift: float = -0.1) -> tuple[LossInputs, GradedBatch]:
    """Four questions: two of both kinds, one all right, one all wrong; masks with holes; log-probs `drift` off the old ones."""
    generator = torch.Generator().manual_seed(seed)
    accuracy = [1, 0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0]
    lengths = torch.randint(1, 9, (12,), generator=generator).tolist()
    batch = batch_of(accuracy, [3, 3, 3, 3, 0, 0, 2, 2, 2, 1, 2, 1], lengths, seed)
    mask = batch.present.double() * (torch.rand(batch.present.shape, generator=generator) < 0.8)
    mask[:, 0] = 1
    old = -3 * torch.rand(mask.shape, dtype=torch.float64, generator=generator)
    noise = torch.randn(mask.shape, dtype=torch.float64, generator=generator)
    inputs = inputs_of(old + drift + 0.3 * noise, noise, old=old, mask=mask)
    return inputs, replace(batch, loss_mask=mask, sampling=Sampling(max_new_tokens=8))


def value_of(loss: Callable, inputs: LossInputs, batch: GradedBatch) -> Tensor:
    """A loss with terms of its own denominators, on a whole mini-batch."""
    objective = Objective(loss)
    found = objective(replace(inputs, prepared=objective.prepare(lambda: detached(inputs), batch)))
    assert not found.per_token.any()
    assert found.normalised is not None
    return found.normalised.sum()


def detached(inputs: LossInputs) -> LossInputs:
    return replace(inputs, logprobs=inputs.logprobs.detach())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("drift", [-0.3, 0.3])  # the KL above its limit, and below
def test_drpo_is_the_written_formula_in_value_and_gradient(seed: int, drift: float) -> None:
    """Although `prepare` has taken it apart: by autograd of the formula on whole batches, float64, to 1e-12 of the value."""
    inputs, batch = drpo_batch(seed, drift)
    value = value_of(Drpo(length_temperature=0.3, temperature=2.0, kl_limit=0.01, kl_coefficient=5.0), inputs, batch)
    (gradient,) = torch.autograd.grad(value, inputs.logprobs)
    written = plain_drpo(inputs, batch, 0.3, 2.0, 0.01, 5.0)
    (expected,) = torch.autograd.grad(written, inputs.logprobs)
    torch.testing.assert_close(value, written, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


def test_drpo_by_hand() -> None:
    """Two questions, all log-probs −1, on-policy. The first: right completions of 2 and 4 of 4 tokens, with λ = 1/(2 ln 3)
    weighted 3 : 1, and wrong ones of 1 and 2, whose softmax is ½ and ½; the second is all right. Per token, over two questions:
    −¾/2/2, −¼/4/2, ½/1/2, ½/2/2; J = −1 − τ·log(2·e^(−1/τ)) = −τ·log 2."""
    batch = doubled(batch_of([1, 1, 0, 0, 1], [0, 0, 0, 0, 1], [2, 4, 1, 2, 3]), sampling=Sampling(max_new_tokens=4))
    inputs = inputs_of(-batch.present, 0.0, old=-batch.present, mask=batch.loss_mask)
    loss = Drpo(length_temperature=1 / (2 * math.log(3)))
    value = value_of(loss, inputs, batch)
    value.backward()
    assert value.item() == pytest.approx(10 * math.log(2) / 2, abs=1e-6)
    expected = torch.tensor([-3 / 16, -1 / 32, 1 / 4, 1 / 8, 0])[:, None] * batch.loss_mask
    torch.testing.assert_close(inputs.logprobs.grad, expected.double(), atol=1e-6, rtol=0)
    metrics = loss(replace(inputs, prepared=loss.prepare(lambda: detached(inputs), batch))).metrics
    assert metrics["contrasted"].value == pytest.approx(4 / 5)
    assert metrics["kl/old"].value == 0


def test_drpos_trust_region_by_hand() -> None:
    """Every log-prob 0.1 below the old: K = 0.1, held by β·(K − δ) = 99.9: 9.99 in value, −99.9/4 at each of four tokens."""
    batch = doubled(batch_of([1, 1], [0, 0], [2, 2]))
    inputs = inputs_of(-1.1 * batch.present, 0.0, old=-batch.present, mask=batch.loss_mask)
    value = value_of(Drpo(), inputs, batch)
    value.backward()
    assert value.item() == pytest.approx(9.99, abs=1e-4)
    torch.testing.assert_close(inputs.logprobs.grad, torch.full((2, 2), -99.9 / 4, dtype=torch.float64), atol=1e-3, rtol=0)


def test_a_completion_without_tokens_in_the_loss_is_neither_right_nor_wrong() -> None:
    """The one wrong completion is masked, as a truncated one may be: the question has nothing to contrast."""
    batch = doubled(batch_of([1, 1, 0], [0, 0, 0], [2, 2, 2]))
    batch.loss_mask[2] = 0
    inputs = inputs_of(-batch.present, 0.0, old=-batch.present, mask=batch.loss_mask)
    loss = Drpo()
    found = loss(replace(inputs, prepared=loss.prepare(lambda: detached(inputs), batch)))
    assert not found.normalised.any()
    assert (found.metrics["contrasted"].total, found.metrics["contrasted"].count) == (0, 2)


def test_drpo_needs_groups_and_accuracy() -> None:
    recipe = load(["quickstart", "algorithm.loss=drpo", "algorithm.advantage=reinforce_pp"]).recipe
    for need in ("groups", "accuracy"):
        assert algorithm.needing(recipe, need) == "algorithm.loss 'drpo'"


# -- what holds for every loss ----------------------------------------------------------------------------------------------

NAMES = sorted(plugins.names("trainers.losses"))
OPTIONS: dict[str, dict[str, float]] = {
    "clip_cov": {"share": 0.2, "covariance_low": 0.1},  # so that a small batch has some
    "kl_cov": {"share": 0.2},
    "gspo": {"clip_low": 0.1, "clip_high": 0.1},  # so that some are not clipped
}


def build(name: str) -> Objective:
    """The loss as the learner calls it."""
    bound = plugins.bind("trainers.losses", name, OPTIONS.get(name, {}))
    return Objective(bound() if isinstance(bound.func, type) else bound)  # type: ignore[attr-defined]


def facts(loss: Any, inputs: LossInputs, batch: GradedBatch) -> dict[str, Tensor]:
    return dict(loss.prepare(lambda: detached(inputs), batch)) if hasattr(loss, "prepare") else {}


def gradient_of(
    name: str, inputs: LossInputs, batch: GradedBatch, parts: Sequence[Sequence[int]] | None = None
) -> tuple[float, Tensor, Metrics]:
    """The mini-batch's loss, its gradient on the log-probs and its metrics, as the learner adds up the micro-batches `parts`,
    each cut to its own longest completion."""
    loss, everything = build(name), range(len(batch.tokens))
    inputs = replace(inputs, logprobs=inputs.logprobs.detach().requires_grad_(), prepared=facts(build(name), inputs, batch))
    weights = token_weights(inputs.loss_mask, "sequence_mean", 16)
    total, metrics = torch.zeros((), dtype=torch.float64), []
    for index in parts or [everything]:
        width = int(batch.lengths[list(index)].max()) if parts else batch.tokens.shape[1]
        found = loss(cut(inputs, list(index), width))
        assert found.per_token.shape == (len(index), width)
        total = total + (found.per_token * weights[list(index), :width]).sum()
        if found.normalised is not None:
            assert found.normalised.shape == found.per_token.shape
            total = total + found.normalised.sum()
        metrics.append(found.metrics)
    (gradient,) = torch.autograd.grad(total, inputs.logprobs)
    return total.item(), gradient, merge(metrics)


def cut(inputs: LossInputs, index: list[int], width: int) -> LossInputs:
    fields = ("logprobs", "entropy", "old_logprobs", "rollout_logprobs", "advantages", "loss_mask")
    prepared = {name: fact[index, :width] for name, fact in inputs.prepared.items()}
    return replace(inputs, **{name: getattr(inputs, name)[index, :width] for name in fields}, prepared=prepared)


def same_metrics(found: Metrics, expected: Metrics) -> None:
    assert found.keys() == expected.keys()
    for name, metric in expected.items():
        assert found[name].value == pytest.approx(metric.value, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_teaches_and_says_so(name: str) -> None:
    """What follows would hold for a loss that is always 0, and for one whose facts are."""
    inputs, batch = drpo_batch(0)
    _, gradient, _ = gradient_of(name, inputs, batch)
    assert (gradient[inputs.loss_mask.bool()] != 0).double().mean() > 0.3
    for fact in facts(build(name), inputs, batch).values():
        assert fact.shape == batch.tokens.shape
        assert 0 < fact.count_nonzero() <= inputs.loss_mask.sum()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_the_cut_into_microbatches_changes_nothing(name: str, seed: int) -> None:
    """Value, gradient and metrics, with facts from the whole mini-batch; float64, 1e-6."""
    inputs, batch = drpo_batch(seed)
    value, gradient, metrics = gradient_of(name, inputs, batch)
    for parts in ([[4, 0, 11], [1, 2], [3], [5, 6, 7, 8, 9, 10]], [[i] for i in range(12)]):
        other_value, other, other_metrics = gradient_of(name, inputs, batch, parts)
        assert other_value == pytest.approx(value, abs=1e-6)
        torch.testing.assert_close(other, gradient, atol=1e-6, rtol=0)
        same_metrics(other_metrics, metrics)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_completions_changes_nothing(name: str, seed: int) -> None:
    inputs, batch = drpo_batch(seed)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed)).tolist()
    value, gradient, metrics = gradient_of(name, inputs, batch)
    other_value, other, other_metrics = gradient_of(name, cut(inputs, order, batch.tokens.shape[1]), rows(batch, order))
    assert other_value == pytest.approx(value, abs=1e-6)
    torch.testing.assert_close(other, gradient[order], atol=1e-6, rtol=0)
    same_metrics(other_metrics, metrics)


def widen(inputs: LossInputs, batch: GradedBatch, garbage: float) -> tuple[LossInputs, GradedBatch]:
    """Two more columns of padding, with garbage in them."""

    def pad(values: Tensor, value: float = 0) -> Tensor:
        return torch.nn.functional.pad(values, (0, 2), value=value)

    wide = replace(
        batch,
        tokens=pad(batch.tokens, 9),
        **{name: pad(getattr(batch, name)) for name in ("present", "loss_mask", "rollout_logprobs", "versions")},
        rewards={name: pad(reward) for name, reward in batch.rewards.items()},
    )
    noisy = {name: pad(getattr(inputs, name), garbage) for name in ("entropy", "old_logprobs", "rollout_logprobs")}
    logprobs, mask, advantages = pad(inputs.logprobs.detach(), garbage), pad(inputs.loss_mask), pad(inputs.advantages, 1e6)
    return LossInputs(logprobs, reference_logprobs=None, advantages=advantages, loss_mask=mask, **noisy), wide


@pytest.mark.parametrize("garbage", [0.0, -torch.inf, 1e6])
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name: str, garbage: float) -> None:
    inputs, batch = drpo_batch(1)
    value, gradient, metrics = gradient_of(name, inputs, batch)
    other_value, other, other_metrics = gradient_of(name, *widen(inputs, batch, garbage))
    assert other_value == pytest.approx(value, abs=1e-6)
    torch.testing.assert_close(other, torch.nn.functional.pad(gradient, (0, 2)), atol=1e-6, rtol=0)
    same_metrics(other_metrics, metrics)


@pytest.mark.parametrize(
    ("logprob", "old"),
    [(-torch.inf, -torch.inf), (-torch.inf, 0.0), (0.0, -torch.inf), (torch.nan, torch.nan), (-1e30, 1e30), (50.0, -50.0)],
)
@pytest.mark.parametrize("name", NAMES)
def test_tokens_outside_the_loss_may_be_anything(name: str, logprob: float, old: float) -> None:
    """Forced prefixes and tool output: their log-probs, advantages and accuracies of nothing touch neither value, nor the
    gradient of others, nor a metric; their own gradient is 0."""
    inputs, batch = drpo_batch(2)
    inputs.loss_mask[5] = 0  # a whole completion too
    batch = replace(batch, loss_mask=inputs.loss_mask)
    outside = inputs.loss_mask == 0
    value, gradient, metrics = gradient_of(name, inputs, batch)
    garbage = replace(
        inputs,
        logprobs=inputs.logprobs.detach().masked_fill(outside, logprob),
        old_logprobs=inputs.old_logprobs.masked_fill(outside, old),
        rollout_logprobs=inputs.rollout_logprobs.masked_fill(outside, old),
        entropy=inputs.entropy.masked_fill(outside, torch.nan),
        advantages=inputs.advantages.masked_fill(outside, -1e6),
    )
    other_value, other, other_metrics = gradient_of(name, garbage, batch)
    assert other_value == pytest.approx(value, abs=1e-6)
    torch.testing.assert_close(other, gradient, atol=1e-6, rtol=0)
    assert not other[outside].any()
    same_metrics(other_metrics, metrics)


TOKEN = st.tuples(
    st.booleans(),  # in the loss
    st.floats(-30, 0),  # log π
    st.one_of(st.floats(-30, 0), st.just(-math.inf)),  # log π_old: an engine that truncates gives −inf
    st.sampled_from([0.0, 0.0, 1.0, -1.0, 1e3, -1e-30]),  # A
)
COMPLETION = st.tuples(st.lists(TOKEN, max_size=4), st.integers(0, 2), st.sampled_from([0.0, 1.0]))


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=50)
@given(completions=st.lists(COMPLETION, min_size=1, max_size=5), alike=st.booleans())
def test_no_batch_gives_what_is_not_a_number(name: str, completions: list[Any], alike: bool) -> None:
    """Empty and fully masked completions, groups of one, advantages all alike, old log-probs of −inf: value and gradient are
    finite, and 0 outside the loss."""
    width = max(1, *(len(tokens) for tokens, *_ in completions))
    batch = batch_of(
        [right for *_, right in completions], [g for _, g, _ in completions], [1] * (len(completions) - 1) + [width]
    )
    blank = (False, 0.0, 0.0, 0.0)
    padded = [[*tokens, *[blank] * (width - len(tokens))] for tokens, *_ in completions]
    mask, logprobs, old, advantages = torch.tensor(padded, dtype=torch.float64).unbind(-1)
    present = torch.tensor([[float(t < len(tokens)) for t in range(width)] for tokens, *_ in completions])
    batch = replace(batch, present=present, loss_mask=mask)
    inputs = inputs_of(logprobs, 0.25 if alike else advantages, old=old, mask=mask)
    value, gradient, _ = gradient_of(name, inputs, batch)
    assert math.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert not gradient[mask == 0].any()
    if not mask.any():
        assert value == 0


# -- through the learner ----------------------------------------------------------------------------------------------------


def learned(name: str, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, budget: int) -> tuple[Tensor, Metrics]:
    """The gradients of two passes over a batch, the second off-policy, one after the other; and the metrics."""
    options = ", ".join(f"{key}: {value}" for key, value in OPTIONS.get(name, {}).items())
    overrides = {
        "algorithm": f"{{loss: {{name: {name}, {options}}}}}",
        "update": f"{{epochs: 2, tokens_per_microbatch: {budget}}}",
        "optimizer": "{learning_rate: 1.0e-2, max_grad_norm: 1.0e+9}",
        "device": "cpu",
    }
    recipe = load(["quickstart", *(f"{key}={value}" for key, value in overrides.items())]).recipe
    assert isinstance(recipe, RL)
    learner = build_learner(recipe, build_policy(recipe, spec.location), tokenizer, algorithm.objective(recipe))
    passes: list[Tensor] = []
    learner.backend.optimizer.register_step_pre_hook(
        lambda *_: passes.append(torch.cat([p.grad.flatten() for p in learner.parameters.values()]))
    )
    graded = batch_of([1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1], [5, 1, 7, 3, 9, 2])
    advantages = 2 * torch.randn(graded.tokens.shape, generator=torch.Generator().manual_seed(5))
    metrics = learner.update(TrainingBatch(graded, advantages, None))
    return torch.cat(passes), metrics


@pytest.mark.parametrize("name", NAMES)
def test_the_learner_prepares_before_it_cuts(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Two updates of a tiny model, in one micro-batch or one completion each: the same gradients to 1e-5 of their norm."""
    whole, metrics = learned(name, tiny_spec, tokenizer, 10_000)
    parts, other = learned(name, tiny_spec, tokenizer, 1)
    assert whole.norm() > 0
    assert (parts - whole).norm() < 1e-5 * whole.norm()
    assert metrics.keys() == other.keys()
