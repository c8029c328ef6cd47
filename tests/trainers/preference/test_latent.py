"""LPC: by hand, its control, its draws, what it leaves as it is, and that its codes learn what decides pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rlcore import jobs
from rlcore.latent import load_latent
from rlcore.models import ModelSpec
from rlcore.recipe.load import load
from rlcore.recipe.schema import Preference
from rlcore.run.metrics import values
from tests.trainers.preference.test_preference import arguments
from tests.trainers.test_loop import metrics
from trainers.preference.codes import code_metrics, information
from trainers.preference.latent import Draw, LatentInputs, LatentLearner, LatentObjective, divergence
from trainers.preference.losses.dpo import Dpo
from trainers.preference.objective import PairInputs, PairObjective
from trainers.preference.pairs import Pair, batch_of
from trainers.preference.trainer import build_learner, measured, preference_loss

PAIRS = [Pair(str(i), (10 + i, 11), (12, 13, 1), (14 + i, 1), {}) for i in range(6)]
LATENT = "latent={codes: 3, width: 8, scale: 0.5}"


def learner_of(
    tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, *overrides: str, frozen: bool = False
) -> LatentLearner:
    recipe = load(arguments(tiny, tmp_path / "run", *overrides)).recipe
    assert isinstance(recipe, Preference)
    model = ModelSpec(str(tiny), device="cpu").load().requires_grad_(not frozen)
    return build_learner(recipe, model, tokenizer, preference_loss(recipe), len(PAIRS))  # type: ignore[return-value]


def test_the_divergence_and_the_draw_by_hand() -> None:
    """The numbers of the docstrings."""
    log_q, log_p = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert divergence(log_q, log_p).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    weights = Draw(torch.zeros(1, 2), 1.0, 0.5).weights(log_q, log_p)
    assert weights[0].tolist() == pytest.approx([3 / 8, 5 / 8])
    cold = Draw(torch.tensor([[0.0, 1.0]]), 0.01, 0.0).weights(log_q, log_p)
    assert cold[0].tolist() == pytest.approx([0, 1])
    posterior, factors = torch.tensor([[1.0, 0], [0.5, 0.5]]).double(), torch.eye(2).double()
    expected = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2)
    assert information(posterior, factors).item() == pytest.approx(expected)


def test_the_loss_is_the_pairs_and_the_divergence() -> None:
    logprobs, mask = torch.tensor([[-1.0, -1], [-2, -2]]), torch.ones(2, 2)
    reference = torch.zeros(2, 2)
    log_q, log_p = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    inputs = LatentInputs(logprobs, reference, mask, log_q, log_p)
    loss = LatentObjective(Dpo(beta=0.1), kl_weight=3.0)(inputs)
    plain = PairObjective(Dpo(beta=0.1))(PairInputs(logprobs, reference, mask))
    expected = -math.log(1 / (1 + math.exp(-0.2))) + 3 * divergence(log_q, log_p).item()
    assert loss.per_token.sum(1).tolist() == pytest.approx([expected, expected])
    assert plain.per_token.sum(1).tolist() == pytest.approx([expected - 3 * divergence(log_q, log_p).item()] * 2)
    assert values(loss.metrics)["kl"] == pytest.approx(divergence(log_q, log_p).item())


def test_codes_that_add_nothing_leave_the_policy_to_the_bit(
    tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """With a codebook of zeros log-probs are the base trainer's, and with z they are those of h + z."""
    latent, base = (learner_of(tiny, tmp_path, tokenizer, *given) for given in ([LATENT], []))
    batch = batch_of(PAIRS, range(6), None).graded
    each = base.passes(batch, range(12))[0]
    plain = base.forward(batch, each)[0]
    with_codes = latent.forward(batch, each)[0]
    assert not torch.allclose(with_codes, plain, atol=0.01)
    latent.codes.codebook.data.zero_()
    assert torch.equal(latent.forward(batch, each)[0], plain)


def test_draws_depend_on_seed_step_and_pair_alone(tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    learner = learner_of(tiny, tmp_path, tokenizer, LATENT)
    learner.total_updates = 11
    first = learner.draw([4, 5])
    assert torch.equal(learner.draw([5]).noise, first.noise[1:])
    assert (first.temperature, first.prior_share) == (1.0, 0.0)
    learner.updates = 5
    later = learner.draw([4])
    assert not torch.equal(later.noise, first.noise[:1])
    assert (later.temperature, later.prior_share) == (0.75, 0.5)
    learner.updates = 10
    assert (learner.draw([4]).temperature, learner.draw([4]).prior_share) == (0.5, 1.0)
    learner.updates, learner.seed = 0, 1
    assert not torch.equal(learner.draw([4]).noise, first.noise[:1])
    noise = torch.cat([learner.draw([i]).noise for i in range(2000)])
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.06)  # Gumbel's mean is Euler's constant


def test_the_control_has_one_code_and_no_divergence(tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    learner = learner_of(tiny, tmp_path, tokenizer, "latent={codes: 1, width: 8, scale: 0.5}")
    batch = batch_of(PAIRS, range(6), None).graded
    each = learner.passes(batch, range(12))[0]
    learner.model.train()
    drawn = learner.forward(batch, each)
    learner.model.eval()
    assert torch.equal(learner.forward(batch, each)[0], drawn[0])
    assert not divergence(drawn[1], drawn[2]).any()


def test_networks_have_a_rate_of_their_own(tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    learner = learner_of(tiny, tmp_path, tokenizer, "latent={codes: 3, width: 8, rate: 100}", "loss=simpo")
    before = {name: p.detach().clone() for name, p in learner.parameters.items()}
    learner.update(batch_of(PAIRS, range(6), None))
    moved = {name: (p - before[name]).abs().max().item() for name, p in learner.parameters.items()}
    assert moved["codes.codebook"] == pytest.approx(100 * moved["lm_head.weight"], rel=0.05)


def test_what_is_written_is_what_was_measured(tiny: Path, tmp_path: Path) -> None:
    """The run's codes beside its plain checkpoint; held-out pairs with their codes' probabilities."""
    folder = tmp_path / "run"
    jobs.run(load(arguments(tiny, folder, "latent={codes: 4, width: 16, scale: 0.5}")), resume=False)
    latent = load_latent(str(folder / "model"))
    assert latent is not None
    assert latent.codes == 4
    [best] = [json.loads((folder / "summary.json").read_text())["written_step"]]
    kept = load_latent(str(folder / "checkpoints" / f"step-{best}" / "policy" / "model"))
    assert kept is not None
    assert torch.equal(kept.codebook, latent.codebook)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    assert len(rows) == summary["validation_pairs"]
    assert sum(row["chosen"] > row["rejected"] for row in rows) / len(rows) == pytest.approx(summary["validation_accuracy"])
    told = code_metrics(*(torch.tensor([row[name] for row in rows]).log() for name in ("posterior", "prior")), [None])
    assert told["kl"] == pytest.approx(summary["validation_codes_kl"], abs=1e-5)
    assert {"kl", "prior_entropy", "posterior_entropy"} <= metrics(folder)[1].keys()


@pytest.mark.parametrize("told_by_prompt", [True, False])
def test_codes_learn_what_decides_pairs(
    told_by_prompt: bool, tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Half of the pairs are decided one way, half the other, and the policy is frozen: what is learned is in the codes. Where
    the prompt tells the halves apart the prior knows them too; where it does not, only the posterior can."""
    pairs = [
        Pair(str(i), (10 + way if told_by_prompt else 10, 30 + i // 2), (20 + way, 1), (21 - way, 1), {"factor": str(way)})
        for i in range(32)
        for way in [i % 2]
    ]

    def learned(codes: int) -> dict[str, float]:
        learner = learner_of(
            tiny,
            tmp_path,
            tokenizer,
            f"latent={{codes: {codes}, width: 16, scale: 0.5, kl_weight: 0.01, prior_share: [0, 0.5]}}",
            "loss=simpo",
            "optimizer={learning_rate: 0.02, schedule: constant, warmup_steps: 0}",
            frozen=True,
        )
        for _ in range(60):
            learner.update(batch_of(pairs, range(32), None))
        return measured(learner.judged(batch_of(pairs, range(32), None)), pairs)

    several, one = learned(4), learned(1)
    assert one["validation/accuracy"] < 0.9  # a bias between what the frozen policy is inclined to
    assert several["validation/codes/information"] > 0.6  # of ln 2 = 0.693
    if told_by_prompt:
        assert several["validation/codes/prior_information"] > 0.6
        assert several["validation/accuracy"] == 1
    else:
        assert several["validation/codes/prior_information"] < 0.05
