"""PPO's clip, the other terms of the objective and aggregation: values and gradients against closed forms. The other policy
losses: test_losses.py."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from rlcore.batch import GradedBatch
from rlcore.errors import UserError
from rlcore.plugins import bind, names
from rlcore.recipe.schema import KL, Correction, Entropy
from rlcore.run.metrics import Mean
from tests.conftest import batch_of
from trainers.losses.drpo import Drpo
from trainers.losses.gpg import gpg
from trainers.losses.ppo_clip import ppo_clip
from trainers.losses.ppo_clip_sequence import ppo_clip_sequence
from trainers.objective import Loss, LossInputs, Objective, most_uncertain, token_weights


def inputs_of(logprobs: torch.Tensor, advantages: torch.Tensor, old: torch.Tensor | None = None) -> LossInputs:
    zeros = torch.zeros_like(logprobs)
    old = logprobs.detach() if old is None else old
    return LossInputs(logprobs, zeros, old, old, None, advantages, torch.ones_like(logprobs))


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # on-policy: −A
        (1.1, 2.0, -2.2, -2.2),  # inside the clip range: −A·r
        (1.5, 2.0, -2.4, 0.0),  # above it, A > 0: clipped, no gradient
        (1.5, -2.0, 3.0, 3.0),  # above it, A < 0: the pessimistic branch keeps its gradient
        (0.5, 2.0, -1.0, -1.0),  # below it, A > 0: unclipped
        (0.5, -2.0, 1.6, 0.0),  # below it, A < 0: clipped
    ],
)
def test_ppo_clip_value_and_gradient(ratio: float, advantage: float, value: float, gradient: float) -> None:
    """d/d log π of −A·r is −A·r; zero where the clip is active."""
    logprobs = torch.tensor([[ratio]]).log().requires_grad_()
    loss = ppo_clip(inputs_of(logprobs, torch.tensor([[advantage]]), old=torch.zeros(1, 1)), clip_low=0.2, clip_high=0.2)
    loss.per_token.sum().backward()
    assert loss.per_token.item() == pytest.approx(value, abs=1e-5)
    assert logprobs.grad.item() == pytest.approx(gradient, abs=1e-5)


def test_clip_higher_moves_the_upper_bound_only() -> None:
    logprobs = torch.tensor([[1.25, 0.7]]).log()
    advantages = torch.tensor([[1.0, -1.0]])
    loss = ppo_clip(inputs_of(logprobs, advantages, old=torch.zeros(1, 2)), clip_low=0.2, clip_high=0.28)
    assert loss.per_token[0].tolist() == pytest.approx([-1.25, 0.8], abs=1e-6)
    assert loss.metrics["clip_fraction"].value == 0.5


@pytest.mark.parametrize(("clip_high", "value", "gradient"), [(0.5, -2.64, -2.64), (0.28, -2.56, 0.0)])
def test_a_completions_ratio_is_the_product_of_its_tokens(clip_high: float, value: float, gradient: float) -> None:
    """Tokens of ratios 1.1 and 1.2, and one outside the loss; A = 2: −2 · 1.32 for the completion, or clipped as a whole."""
    logprobs = torch.tensor([[1.1, 1.2, 7.0]]).log().requires_grad_()
    inputs = inputs_of(logprobs, torch.full((1, 3), 2.0), old=torch.zeros(1, 3))
    inputs = replace(inputs, loss_mask=torch.tensor([[1.0, 1, 0]]))
    loss = ppo_clip_sequence(inputs, clip_high=clip_high)
    total = (loss.per_token * token_weights(inputs.loss_mask, "sequence_mean", 10)).sum()
    total.backward()
    assert total.item() == pytest.approx(value, abs=1e-5)
    assert logprobs.grad[0].tolist() == pytest.approx([gradient, gradient, 0], abs=1e-5)


def test_what_weighs_tokens_weighs_them_in_a_completions_ratio_too() -> None:
    """Of two tokens the second alone is learned from: its own −A·s, and nothing at the first."""
    logprobs = torch.tensor([[1.1, 1.2]]).log().requires_grad_()
    inputs = inputs_of(logprobs, torch.full((1, 2), 2.0), old=torch.zeros(1, 2))
    inputs = replace(inputs, prepared={"uncertain": torch.tensor([[0.0, 1]])})
    loss = Objective(partial(ppo_clip_sequence, clip_high=0.5))(inputs)
    (loss.per_token * token_weights(inputs.loss_mask, "sequence_mean", 10)).sum().backward()
    assert logprobs.grad[0].tolist() == pytest.approx([0, -2.64], abs=1e-5)


def test_names_that_the_objective_has_itself_are_refused() -> None:
    inputs = inputs_of(torch.tensor([[-1.0]]), torch.tensor([[2.0]]))

    def loss(inputs: LossInputs) -> Loss:
        return Loss(-inputs.logprobs, {"entropy": Mean(1, 1)})

    with pytest.raises(UserError, match="two parts of a step report the metric 'entropy'"):
        Objective(loss)(inputs)

    class Prepared:
        def prepare(self, look: object, batch: object) -> dict[str, torch.Tensor]:
            return {"uncertain": torch.zeros(1, 1)}

    with pytest.raises(UserError, match="prepares 'uncertain', which the objective does"):
        Objective(Prepared()).prepare(lambda: inputs, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda i: i.logprobs, "returned a Tensor: return trainers.objective.Loss"),
        (lambda i: Loss(i.logprobs.sum(), {}), "it is one number per token"),
        (lambda i: Loss(-i.advantages, {}), "has no gradient: something in it was detached"),
        (lambda i: Loss(-i.logprobs, {"mine": 0.5}), "metric 'mine' is no Mean or Max: make it with trainers.objective.mean"),
    ],
)
def test_a_policy_loss_that_cannot_be_learned_from_is_refused(loss: Any, message: str) -> None:
    inputs = inputs_of(torch.tensor([[-1.0]], requires_grad=True), torch.tensor([[2.0]]))
    with pytest.raises(UserError, match=message):
        Objective(loss)(inputs)


def test_objective_adds_the_kl_penalty_to_the_policy_loss() -> None:
    logprobs = torch.tensor([[-1.0]], requires_grad=True)
    inputs = replace(inputs_of(logprobs, torch.tensor([[2.0]])), reference_logprobs=torch.tensor([[-1.5]]))
    loss = Objective(ppo_clip, kl=KL(estimator="k2", coefficient=0.1))(inputs)
    loss.per_token.sum().backward()
    assert loss.per_token.item() == pytest.approx(-2.0 + 0.1 * 0.125)
    assert logprobs.grad.item() == pytest.approx(-2.0 + 0.1 * 0.5)


def test_the_entropy_bonus_is_subtracted_per_token() -> None:
    """L − 0.1·H: its derivative by each token's entropy is −0.1, by the log-probs the policy loss's alone. Without a bonus the
    entropy is measured only."""
    logprobs, entropy = torch.tensor([[-1.0, -2.0]], requires_grad=True), torch.tensor([[0.5, 2.0]], requires_grad=True)
    inputs = replace(inputs_of(logprobs, torch.tensor([[2.0, -1.0]])), entropy=entropy)
    loss = Objective(ppo_clip, entropy=Entropy(bonus=0.1))(inputs)
    assert loss.per_token[0].tolist() == pytest.approx([-2.05, 0.8])
    loss.per_token.sum().backward()
    assert entropy.grad[0].tolist() == pytest.approx([-0.1, -0.1])
    assert logprobs.grad[0].tolist() == pytest.approx([-2.0, 1.0])
    measured = Objective(ppo_clip)(inputs)
    assert measured.per_token[0].tolist() == [-2.0, 1.0]
    assert measured.metrics["entropy"].value == loss.metrics["entropy"].value == 1.25


@pytest.mark.parametrize(("share", "kept"), [(0.2, {9, 10}), (0.25, {8, 9, 10}), (0.5, {6, 7, 8, 9, 10}), (1e-9, {10})])
def test_the_most_uncertain_tokens_are_those_above_a_quantile_of_the_tokens_in_the_loss(share: float, kept: set[int]) -> None:
    """Entropies 1 to 10, in two completions, and higher ones outside the loss. The 0.8-quantile of 1 … 10 is 8.2."""
    entropy = torch.tensor([[3.0, 10, 1, 7, 5, 99], [8, 2, 6, 9, 4, 99]])
    mask = (entropy < 99).float()
    found = most_uncertain(entropy, mask, share) * mask
    assert set(entropy[found.bool()].tolist()) == kept


def test_equally_uncertain_tokens_are_all_kept_and_of_none_none() -> None:
    mask = torch.tensor([[1.0, 1, 0]])
    assert (most_uncertain(torch.full((1, 3), 0.7), mask, 0.2) * mask).tolist() == mask.tolist()
    assert not most_uncertain(torch.ones(1, 3), 0 * mask, 0.2).any()


def mini_batch() -> tuple[LossInputs, GradedBatch]:
    """Three completions of 2, 3 and 1 tokens, the first and the last correct."""
    batch = batch_of([1, 0, 1], [0, 0, 0], [2, 3, 1])
    logprobs = torch.tensor([[-1.0, -2, 0], [-3, -4, -5], [-6, 0, 0]], requires_grad=True)
    entropy = torch.tensor([[0.1, 0.9, 0], [0.2, 0.3, 0.8], [0.4, 0, 0]])
    advantages = torch.tensor([[1.0], [-1], [2]]).expand(3, 3)
    return replace(inputs_of(logprobs, advantages), entropy=entropy, loss_mask=batch.loss_mask), batch


def prepared(objective: Objective, inputs: LossInputs, batch: GradedBatch) -> LossInputs:
    return replace(inputs, prepared=objective.prepare(lambda: replace(inputs, logprobs=inputs.logprobs.detach()), batch))


def added_up(loss: Loss, inputs: LossInputs, aggregate: str = "token_mean") -> torch.Tensor:
    total = (loss.per_token * token_weights(inputs.loss_mask, aggregate, 10)).sum()  # type: ignore[arg-type]
    return total if loss.normalised is None else total + loss.normalised.sum()


def test_certain_tokens_keep_the_other_terms_and_stay_in_the_denominator() -> None:
    """The upper third of six tokens has entropies 0.8 and 0.9: −A·∇log π/6 for them, and the KL's d for all."""
    inputs, batch = mini_batch()
    inputs = replace(inputs, reference_logprobs=inputs.logprobs.detach() - 0.5)
    objective = Objective(ppo_clip, kl=KL(estimator="k2", coefficient=0.1), entropy=Entropy(top_quantile=1 / 3))
    inputs = prepared(objective, inputs, batch)
    added_up(objective(inputs), inputs).backward()
    kl = 0.1 * 0.5
    expected = torch.tensor([[kl, kl - 1, 0], [kl, kl, kl + 1], [kl, 0, 0]]) / 6
    torch.testing.assert_close(inputs.logprobs.grad, expected)


@pytest.mark.parametrize("aggregate", ["token_mean", "sequence_mean", "sequence_sum", "constant"])
def test_imitation_is_the_mean_negative_log_likelihood_of_correct_tokens(aggregate: str) -> None:
    """However the policy loss is aggregated: 0.2 · (1 + 2 + 6)/3 is added, and −0.2/3 to the gradient of three tokens."""
    inputs, batch = mini_batch()
    objective = Objective(gpg, imitation=0.2)
    inputs = prepared(objective, inputs, batch)
    both, alone = (added_up(loss(inputs), inputs, aggregate) for loss in (objective, Objective(gpg)))
    assert (both - alone).item() == pytest.approx(0.2 * 3, abs=1e-6)
    (gradient,) = torch.autograd.grad(both - alone, inputs.logprobs)
    torch.testing.assert_close(gradient, -0.2 / 3 * torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0, 0]]))


def test_imitation_of_nothing_is_nothing() -> None:
    inputs, batch = mini_batch()
    objective = Objective(gpg, imitation=0.2)
    inputs = prepared(objective, inputs, replace(batch, accuracy=torch.zeros(3)))
    found = objective(inputs).normalised
    assert found is not None
    assert not found.any()


def test_imitation_is_added_to_a_loss_with_denominators_of_its_own() -> None:
    """DRPO's, and unmoved by the recipe's uncertain tokens."""
    inputs, batch = mini_batch()
    both, alone, imitated = (
        added_up(objective(given), given)
        for objective in (Objective(Drpo(), imitation=0.2), Objective(Drpo()), Objective(silent, imitation=0.2))
        for given in [prepared(objective, inputs, batch)]
    )
    assert alone.item() != 0
    torch.testing.assert_close(both, alone + imitated)


def silent(inputs: LossInputs) -> Loss:
    return Loss(torch.zeros_like(inputs.logprobs), {})


@pytest.mark.parametrize("parts", [[[0], [1], [2]], [[2, 1], [0]]])
def test_facts_of_a_mini_batch_add_up_over_its_micro_batches(parts: list[list[int]]) -> None:
    """Uncertain tokens, an entropy bonus and imitation, all at once."""
    inputs, batch = mini_batch()
    objective = Objective(ppo_clip, entropy=Entropy(bonus=0.1, top_quantile=0.5), imitation=0.2)
    inputs = prepared(objective, inputs, batch)
    weights = token_weights(inputs.loss_mask, "token_mean", 10)
    total = torch.zeros(())
    for index in parts:
        fields = ("logprobs", "entropy", "old_logprobs", "rollout_logprobs", "advantages", "loss_mask")
        facts = {name: fact[index] for name, fact in inputs.prepared.items()}
        loss = objective(replace(inputs, **{name: getattr(inputs, name)[index] for name in fields}, prepared=facts))
        assert loss.normalised is not None
        total = total + (loss.per_token * weights[index]).sum() + loss.normalised.sum()
    torch.testing.assert_close(total, added_up(objective(inputs), inputs))


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("token_mean", [[1 / 4, 1 / 4, 1 / 4], [1 / 4, 0, 0]]),
        ("sequence_mean", [[1 / 6, 1 / 6, 1 / 6], [1 / 2, 0, 0]]),
        ("sequence_sum", [[1 / 2, 1 / 2, 1 / 2], [1 / 2, 0, 0]]),
        ("constant", [[1 / 20, 1 / 20, 1 / 20], [1 / 20, 0, 0]]),
    ],
)
def test_token_weights(aggregate: str, expected: list[list[float]]) -> None:
    """Two completions of 3 and 1 tokens; the constant length is 10."""
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    torch.testing.assert_close(token_weights(mask, aggregate, 10), torch.tensor(expected))  # type: ignore[arg-type]


def test_completions_outside_the_loss_do_not_count_in_the_denominators() -> None:
    """What mask_truncated does to sequence_mean: the mean is over the completions that are left."""
    mask = torch.tensor([[1.0, 1], [0, 0], [1, 1]])
    weights = token_weights(mask, "sequence_mean", 10)
    assert weights.sum(1).tolist() == pytest.approx([0.5, 0, 0.5])
    assert token_weights(mask, "sequence_sum", 10).tolist() == [[0.5, 0.5], [0, 0], [0.5, 0.5]]
    for aggregate in ("token_mean", "sequence_mean", "sequence_sum", "constant"):
        assert not token_weights(torch.zeros(2, 3), aggregate, 10).any()  # type: ignore[arg-type]


def test_sequence_sum_makes_of_gpg_the_gradient_of_a_completions_log_probability() -> None:
    """Of the mean over completions of −A·log π(y): −A/3 at each token, whatever the lengths."""
    inputs, _ = mini_batch()
    added_up(gpg(inputs), inputs, "sequence_sum").backward()
    torch.testing.assert_close(inputs.logprobs.grad, -inputs.advantages / 3 * inputs.loss_mask)


LOSSES = sorted(names("trainers.losses"))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("correction", [None, "token_tis", "sequence_mis", "bypass", "bypass_sequence_mis"])
def test_what_stands_outside_the_loss_may_be_anything(loss: str, correction: str | None) -> None:
    """−inf log-probs of tokens that the policy did not sample change neither value nor gradient."""
    chosen = bind("trainers.losses", loss, {})
    function = chosen() if isinstance(chosen.func, type) else chosen  # type: ignore[attr-defined]
    rule = None if correction is None else Correction.model_validate({"name": correction})
    objective = Objective(function, kl=KL(coefficient=0.1), correction=rule, entropy=Entropy(top_quantile=0.5))
    found = []
    for value in (0.0, -torch.inf):
        inputs, batch = mini_batch()
        outside = inputs.loss_mask == 0
        logprobs = inputs.logprobs.detach().masked_fill(outside, value).requires_grad_()
        others = inputs.old_logprobs.masked_fill(outside, value)
        inputs = replace(inputs, logprobs=logprobs, old_logprobs=others, rollout_logprobs=others, reference_logprobs=others)
        inputs = prepared(objective, inputs, replace(batch, rollout_logprobs=others))
        total = added_up(objective(inputs), inputs)
        total.backward()
        assert torch.isfinite(total)
        assert logprobs.grad is not None
        found.append((total.detach(), logprobs.grad))
    torch.testing.assert_close(found[0], found[1])


def test_a_loss_that_adds_up_by_itself_is_refused() -> None:
    def summed(inputs: LossInputs) -> Loss:
        return Loss(-(inputs.advantages * inputs.logprobs).sum(), {})

    with pytest.raises(UserError, match=r"the policy loss has shape \(\): it is one number per token, \(1, 1\)"):
        Objective(summed)(inputs_of(torch.zeros(1, 1, requires_grad=True), torch.ones(1, 1)))
    with pytest.raises(UserError, match=r"the policy loss returned a Tensor: return trainers.objective.Loss"):
        Objective(lambda inputs: inputs.logprobs)(inputs_of(torch.zeros(1, 1), torch.ones(1, 1)))  # type: ignore[arg-type, return-value]
