"""The two biases that Dr.GRPO removes (Liu et al. 2025, arXiv 2503.20783), each shown on a batch made for it, as on-policy
gradients on the log-probs of the tokens, with the advantage, loss and aggregation of a recipe.

    length        `sequence_mean` divides a completion's push by its length: long wrong answers are hardly unlearned
    difficulty    `grpo` divides a group's advantages by their σ: what nearly all or nearly none get right has more weight

The first belongs to the aggregation and the second to the advantage; each is shown to be there without the other.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from rlcore.batch import GradedBatch
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from tests.conftest import batch_of
from trainers import algorithm
from trainers.objective import LossInputs, token_weights

GRPO = "{advantage: grpo, aggregate: sequence_mean}"
DR_GRPO = "{advantage: dr_grpo, aggregate: constant}"


def pull(batch: GradedBatch, chosen: str) -> Tensor:
    """(B, T) how far a step pulls each token's log-prob up: minus the gradient of the loss."""
    recipe = load(["quickstart", f"algorithm={chosen}"]).recipe
    assert isinstance(recipe, RL)
    logprobs = torch.full(batch.tokens.shape, -1.0, requires_grad=True)
    old = logprobs.detach()
    advantages = algorithm.advantage(recipe)(batch).policy
    loss = algorithm.objective(recipe)(LossInputs(logprobs, -old, old, old, None, advantages, batch.loss_mask))
    weights = token_weights(batch.loss_mask, recipe.algorithm.aggregate, recipe.rollout.max_new_tokens)
    (loss.per_token * weights).sum().backward()
    assert logprobs.grad is not None
    return -logprobs.grad


# -- length --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "ratio"),
    [
        (GRPO, 4.0),
        ("{advantage: dr_grpo, aggregate: sequence_mean}", 4.0),
        (DR_GRPO, 1.0),
        ("{advantage: grpo, aggregate: constant}", 1.0),
        ("{advantage: dr_grpo, aggregate: token_mean}", 1.0),
    ],
)
def test_the_length_bias(chosen: str, ratio: float) -> None:
    """Right and wrong, of 2 tokens and of 8: how much more a token of the short one is pulled up if right, pushed down if
    wrong. The gradient of the expected reward has every token alike; at 4, to be wrong at length is punished less."""
    pulls = pull(batch_of([1, 1, 0, 0], [0] * 4, [2, 8, 2, 8]), chosen)
    short_right, long_right, short_wrong, long_wrong = pulls[:, 0].tolist()
    assert short_right > 0 > short_wrong
    assert short_right / long_right == pytest.approx(ratio)
    assert short_wrong / long_wrong == pytest.approx(ratio)


# -- difficulty ----------------------------------------------------------------------------------------------------------


NO_SIGMA = "{advantage: dr_grpo, aggregate: sequence_mean}"
SIGMAS = (2 / 7) ** 0.5 / (1 / 8) ** 0.5  # σ of 4 right in 8 by that of 1 or 7


@pytest.mark.parametrize(
    ("chosen", "ratio"),
    [(GRPO, SIGMAS), ("{advantage: grpo, aggregate: constant}", SIGMAS), (DR_GRPO, 1.0), (NO_SIGMA, 1.0)],
)
def test_the_difficulty_bias(chosen: str, ratio: float) -> None:
    """Three problems, 4, 1 and 7 of whose 8 completions are right, a token each: what a completion's distance from the mean
    reward is multiplied by, of the hard and of the easy problem relative to the one in between."""
    right = [4, 1, 7]
    rewards = torch.tensor([[1.0] * k + [0.0] * (8 - k) for k in right])
    batch = batch_of(rewards.flatten().tolist(), [g for g in range(3) for _ in range(8)], [1] * 24)
    weights = pull(batch, chosen).view(3, 8) / (rewards - rewards.mean(1, keepdim=True))
    middle, hard, easy = weights.unbind()
    assert (hard / middle).tolist() == pytest.approx([ratio] * 8, rel=1e-5)
    assert (easy / middle).tolist() == pytest.approx([ratio] * 8, rel=1e-5)


@pytest.mark.parametrize(("chosen", "ratio"), [(GRPO, 1.2544), (DR_GRPO, 1.0), (NO_SIGMA, 1.0)])
def test_the_difficulty_bias_in_expectation(chosen: str, ratio: float) -> None:
    """One token decides, right with probability p = 1/(1 + e^{−θ}). The expected step on θ, over all outcomes of 8 completions,
    by the derivative p(1 − p) of the expected reward: for a problem of p = 0.1 relative to one of 0.5. An estimator that is
    unbiased, up to a factor common to all problems, has 1. GRPO's step is Σ_k C(8,k) p^k (1−p)^{8−k} √(56·k(8−k))/8."""
    outcomes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)))
    batch = batch_of(outcomes.flatten().tolist(), [g for g in range(256) for _ in range(8)], [1] * 2048)
    pulls = pull(batch, chosen).view(256, 8).double()

    def relative(p: float) -> float:
        probability = (p * outcomes + (1 - p) * (1 - outcomes)).double().prod(1)
        step = (pulls * (outcomes - p)).sum(1)  # ∂ log π/∂θ is 1 − p for the right token and −p for the wrong one
        return float((probability * step).sum() / (p * (1 - p)))

    assert relative(0.1) / relative(0.5) == pytest.approx(ratio, abs=1e-3)
    assert relative(0.9) / relative(0.5) == pytest.approx(ratio, abs=1e-3)
