"""Advantages, losses and gradients against the real trainers of TRL 1.16, on random batches, both sides from their settings.

Two depths. *The learner*: a recipe on one side, a GRPOConfig or RLOOConfig on the other; the same model, prompts, completions
and rewards; out come advantages, the loss and its gradient on every parameter, in float32. *The objective*: the loss as a
function of log-probs, both sides given the same in float64, which allows masks with holes, advantages that differ by token and
wilder ratios. At each depth the oracle is shown to see an error: our side is broken on purpose and must then disagree.

Neither exercises sampling, the optimiser, several processes, LoRA, nor mini-batches smaller than the batch (where `dapo` of TRL
divides by the mean number of tokens of a mini-batch, ours by the mini-batch's own).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import trainers.learner
import trainers.logprobs
import trainers.prepare
from rlcore.batch import GradedBatch, TrainingBatch, pad
from rlcore.models import ModelSpec
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from rlcore.types import Sampling
from trainers import algorithm
from trainers.build import build_learner, build_policy, build_reference
from trainers.logprobs import token_logprobs
from trainers.objective import LossInputs, token_weights
from trainers.prepare import Prepare
from trainers.scorer import microbatches

pytestmark = pytest.mark.filterwarnings("ignore:TRL currently supports vLLM")

GROUPS, SAMPLES, LONGEST = 4, 4, 12
TEMPERATURE = 0.7
BUDGET = 90  # tokens of a micro-batch: several, of different sizes


@dataclass(frozen=True)
class Case:
    """One algorithm in both languages."""

    ours: str  # the recipe's `algorithm`
    theirs: dict[str, Any]  # of GRPOConfig, or of RLOOConfig where no `loss_type` is named
    learning_rate: float = 3e-3  # moves the policy so far in one step that about half of the ratios are clipped
    tolerance: float = 1e-6


GRPO = "advantage: {name: grpo, epsilon: 1.0e-4}, aggregate: sequence_mean"
DAPO = "advantage: {name: grpo, epsilon: 1.0e-4}, aggregate: token_mean"
KL = "kl: {estimator: k3, coefficient: 0.3}"
THEIR_KL = {"beta": 0.3, "use_bias_correction_kl": False}  # by default they multiply the penalty by the ratio
CASES = {
    "grpo": Case(GRPO, {"loss_type": "grpo"}),
    "dr_grpo": Case("advantage: dr_grpo, aggregate: constant", {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "dapo": Case(
        f"{DAPO}, loss: {{name: ppo_clip, clip_low: 0.1, clip_high: 0.28}}",
        {"loss_type": "dapo", "epsilon": 0.1, "epsilon_high": 0.28},
    ),
    "gspo": Case(
        f"{GRPO}, loss: {{name: gspo, clip_low: 0.003, clip_high: 0.004}}",
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.003, "epsilon_high": 0.004},
        learning_rate=2e-5,
    ),
    "kl": Case(f"{GRPO}, {KL}", {"loss_type": "grpo", **THEIR_KL}),
    "truncated": Case(f"{DAPO}, mask_truncated: true", {"loss_type": "dapo", "mask_truncated_completions": True}),
    **{
        f"importance, {mode}": Case(  # with a KL term, which the weight leaves alone
            f"{DAPO}, correction: {ours}, {KL}",
            {
                "loss_type": "dapo",
                "vllm_importance_sampling_mode": mode,
                "vllm_importance_sampling_clip_max": cap,
                "vllm_importance_sampling_clip_min": floor,
                **THEIR_KL,
            },
            tolerance=2e-6 if "sequence" in mode else 1e-6,  # a completion's ratio adds up the rounding errors of its tokens
        )
        for mode, ours, floor, cap in (
            ("token_truncate", "{name: token_tis, cap: 1.1}", None, 1.1),
            ("token_mask", "{name: icepop, cap: 1.2, floor: 0.8}", 0.8, 1.2),
            ("sequence_truncate", "{name: sequence_tis, cap: 1.1}", None, 1.1),
            ("sequence_mask", "{name: sequence_mis, cap: 1.3}", None, 1.3),
        )
    },
    "rloo": Case(
        "advantage: rloo, loss: {name: ppo_clip_sequence, clip_low: 0.3, clip_high: 0.5}, aggregate: sequence_mean",
        {"epsilon": 0.3, "epsilon_high": 0.5, "beta": 0.0},
        learning_rate=2e-4,
        tolerance=2e-6,  # a completion's ratio adds up the rounding errors of its tokens
    ),
}
TERMS = {  # compared as functions of log-probs and entropies alone
    "two_sided_clip": Case(
        f"{DAPO}, loss: {{name: two_sided_clip, delta: 1.5, clip_low: 0.1, clip_high: 0.28}}",
        {"loss_type": "dapo", "delta": 1.5, "epsilon": 0.1, "epsilon_high": 0.28},
    ),
    "cispo": Case(f"{DAPO}, loss: {{name: cispo, ratio_max: 1.5}}", {"loss_type": "cispo", "epsilon_high": 1.5}),
    "sapo": Case(f"{GRPO}, loss: sapo", {"loss_type": "sapo"}),
    "uncertain": Case(
        f"{DAPO}, entropy: {{top_quantile: 0.2}}, {KL}", {"loss_type": "dapo", "top_entropy_quantile": 0.2, **THEIR_KL}
    ),
    "bonus": Case(f"{DAPO}, entropy: {{bonus: 0.1}}", {"loss_type": "dapo", "entropy_coef": 0.1}),
}


def recipe_of(case: Case, *overrides: str) -> RL:
    shape = f"{{samples: {SAMPLES}, max_new_tokens: {LONGEST}, temperature: {TEMPERATURE}}}"
    optimizer = f"{{learning_rate: {case.learning_rate}, max_grad_norm: 1.0e+9}}"
    update = f"{{epochs: 2, tokens_per_microbatch: {BUDGET}}}"
    settings = {"algorithm": f"{{{case.ours}}}", "rollout": shape, "optimizer": optimizer, "update": update, "device": "cpu"}
    recipe = load(["quickstart", *(f"{key}={value}" for key, value in settings.items()), *overrides]).recipe
    assert isinstance(recipe, RL)
    return recipe


def trainer_of(
    case: Case, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, prompts: list[str], rewards: list[float], cut: int
) -> Any:
    """The real trainer, which takes the rollout of `prompts` in `cut` accumulated parts."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    trainer_type, config_type = (GRPOTrainer, GRPOConfig) if "loss_type" in case.theirs else (RLOOTrainer, RLOOConfig)
    config = config_type(
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        per_device_train_batch_size=len(prompts) // cut,
        gradient_accumulation_steps=cut,
        num_generations=SAMPLES,
        num_iterations=2,
        max_completion_length=LONGEST,
        temperature=TEMPERATURE,
        output_dir=str(Path(spec.location).parent / "trl"),
        **case.theirs,
    )
    trainer = trainer_type(
        model=spec.load().train(),
        reward_funcs=lambda prompts, **_: rewards,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = cut  # as `Trainer.train` would
    return trainer


# -- the learner ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """One look at the whole batch: where the parameters were, and the gradient there."""

    weights: dict[str, Tensor]
    gradient: dict[str, Tensor]


@dataclass(frozen=True)
class Result:
    """Of two passes over a batch: the first on-policy, the second with its ratios to the policy before the first."""

    advantages: Tensor  # (B,)
    loss: float  # the sum of both
    passes: list[Pass]
    clipped: float = 0.0  # share of the second pass's tokens


def draw(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[list[str], GradedBatch]:
    """Prompts, and a random rollout of them. Rewards of the four groups: normal; right or wrong; all equal; normal. Four
    completions are cut off at the limit. The engine's log-probs are a little off the model's."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, n: int) -> Tensor:
        return torch.randint(low, high, (n,), generator=generator)

    texts = ["".join(tokenizer.convert_ids_to_tokens(integers(6, len(tokenizer), n).tolist())) for n in (2, 9, 4, 6)]
    prompts = [text for text in texts for _ in range(SAMPLES)]
    ids = [tuple(tokenizer(text)["input_ids"]) for text in prompts]
    lengths = torch.cat([integers(1, LONGEST, len(prompts) - 4), torch.full((4,), LONGEST)])
    lengths = lengths[torch.randperm(len(lengths), generator=generator)]
    truncated = lengths == LONGEST
    completions = [integers(3, len(tokenizer), int(n)).tolist() for n in lengths]
    for completion, cut in zip(completions, truncated, strict=True):
        if not cut:
            completion[-1] = tokenizer.eos_token_id
    tokens, present = pad(completions, torch.long), pad([[1] * len(c) for c in completions], torch.float32)
    rewards = torch.randn(GROUPS, SAMPLES, generator=generator).mul(16).round() / 16  # sums of sixteenths are exact
    rewards[1:3] = torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 1]])
    with torch.no_grad():
        logprobs, _ = token_logprobs(spec.load(), ids, tokens, lengths.tolist(), TEMPERATURE, chunks=1)
    return prompts, GradedBatch(
        prompt_ids=ids,
        tokens=tokens,
        present=present,
        loss_mask=present,
        rollout_logprobs=(logprobs + 0.2 * torch.randn(logprobs.shape, generator=generator)) * present,
        versions=torch.zeros_like(tokens),
        truncated=truncated,
        sampling=Sampling(temperature=TEMPERATURE),
        group=torch.arange(GROUPS).repeat_interleave(SAMPLES),
        rewards={"answer": rewards.view(-1, 1) * torch.nn.functional.one_hot(lengths - 1, LONGEST)},
        accuracy=torch.zeros(len(prompts)),
    )


def ours(recipe: RL, graded: GradedBatch, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Result:
    """From the recipe on: two epochs of `Learner.update`, watched before each step of the optimiser."""
    objective = algorithm.objective(recipe)
    policy = build_policy(recipe, spec.location)
    reference = build_reference(recipe, spec.location, policy)
    prepare = Prepare(lambda batch: batch, algorithm.advantage(recipe), reference, recipe.algorithm.mask_truncated)
    learner = build_learner(recipe, policy, tokenizer, objective)
    passes: list[Pass] = []

    def watch(*_: Any) -> None:
        weights = {name: p.detach().clone() for name, p in learner.parameters.items()}
        passes.append(Pass(weights, {name: p.grad.clone() for name, p in learner.parameters.items()}))

    learner.backend.optimizer.register_step_pre_hook(watch)
    batch, _ = prepare(graded)
    metrics = learner.update(batch)
    return Result(batch.advantages[:, 0], metrics["loss"].total, passes, 2 * metrics["clip_fraction"].value)


def theirs(
    case: Case,
    prompts: list[str],
    graded: GradedBatch,
    weights: Sequence[dict[str, Tensor]],
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
) -> Result:
    """Two iterations of TRL's own `training_step` over the rollout in two accumulated halves, at the given `weights`. Nothing
    of TRL is replaced but the sampling of completions; and RLOO's log-probs are widened to float64, since it subtracts two sums
    over a completion, which costs 4e-6 in float32."""
    trainer = trainer_of(case, spec, tokenizer, prompts, graded.totals.tolist(), cut=2)
    lengths = [int(n) for n in graded.lengths]
    completions, logprobs = (
        [row[:n] for row, n in zip(values.tolist(), lengths, strict=True)]
        for values in (graded.tokens, graded.rollout_logprobs)
    )
    if "loss_type" in case.theirs:
        trainer._generate_single_turn = lambda *_: (completions, logprobs)
        trainer.use_vllm = "vllm_importance_sampling_mode" in case.theirs
    else:
        narrow = trainer._get_per_token_logps_and_entropies
        trainer._generate_single_turn = lambda *_: completions
        trainer._get_per_token_logps_and_entropies = lambda *a, **k: tuple(
            x if x is None else x.double() for x in narrow(*a, **k)
        )
    rollout = [{"prompt": prompt} for prompt in prompts]
    losses, passes = [], []
    for at in weights:
        trainer.model.load_state_dict(at)
        trainer.model.zero_grad()
        losses += [trainer.training_step(trainer.model, rollout, None).item() for _ in range(2)]
        passes.append(Pass(at, {name: p.grad.clone() for name, p in trainer.model.named_parameters()}))
    return Result(torch.tensor(list(trainer._logs["advantages"])), sum(losses), passes)


def disagreement(
    case: Case, recipe: RL, seed: int, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> tuple[float, Result]:
    """The largest of: differences of advantages and of the loss, each gradient's distance relative to its norm. And ours."""
    prompts, graded = draw(spec, tokenizer, seed)
    mine = ours(recipe, graded, spec, tokenizer)
    other = theirs(case, prompts, graded, [one.weights for one in mine.passes], spec, tokenizer)
    found = [float((mine.advantages - other.advantages).abs().max()), abs(mine.loss - other.loss)]
    for a, b in zip(mine.passes, other.passes, strict=True):
        x, y = (torch.cat([one.gradient[name].flatten().double() for name in a.weights]) for one in (a, b))
        found.append(float((x - y).norm() / y.norm()))
    return float(torch.tensor(found).max()), mine  # not a number where any of them is


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_from_rewards_to_gradients_we_agree_with_trl(
    tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, name: str, seed: int
) -> None:
    """Proves that prompts, completions and rewards give TRL's advantages, loss and parameter gradients, on-policy and off, with
    clipping active, however either side cuts the batch: against `GRPOTrainer` and `RLOOTrainer` of TRL 1.16, from
    `_generate_and_score_completions` (truncation, log-probs, importance ratio, reference, advantages) to `_compute_loss` and
    the accumulation of `training_step`. float32: agreement to the case's tolerance, of gradients relative to their norm.

    Does not exercise what the head of this file names."""
    case = CASES[name]
    distance, mine = disagreement(case, recipe_of(case), seed, tiny_spec, tokenizer)
    assert distance < case.tolerance
    assert 0.2 < mine.clipped < 0.8


Mutation = Callable[[pytest.MonkeyPatch], None]


def flipped_advantages(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trainers.prepare, "TrainingBatch", lambda graded, a, *rest: TrainingBatch(graded, -a, *rest))


def logprobs_of_the_token_before(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trainers.logprobs, "token_logprobs", lambda *a: tuple(values.roll(1, 1) for values in token_logprobs(*a)))


def denominators_of_the_microbatch(patch: pytest.MonkeyPatch) -> None:
    """The mean over micro-batches of each one's own loss."""
    cut: list[list[int]] = []

    def watched(*arguments: Any) -> Any:
        cut[:] = list(microbatches(*arguments))
        return iter(cut)

    def local(mask: Tensor, *how: Any) -> Tensor:
        weights = torch.zeros_like(mask)
        for rows in cut:
            weights[rows] = token_weights(mask[rows], *how) / len(cut)
        return weights

    patch.setattr(trainers.scorer, "microbatches", watched)  # `logprobs` cuts the same batch before the first step
    patch.setattr(trainers.learner, "token_weights", local)


@pytest.mark.parametrize("mutation", [flipped_advantages, logprobs_of_the_token_before, denominators_of_the_microbatch])
@pytest.mark.parametrize("name", CASES)
def test_a_broken_learner_disagrees_with_trl(
    tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, name: str, mutation: Mutation
) -> None:
    case = CASES[name]
    mutation(monkeypatch)
    distance, _ = disagreement(case, recipe_of(case), 0, tiny_spec, tokenizer)
    assert distance > 1e-2


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("grpo", "advantage={name: grpo, epsilon: 1.0e-6}"),
        ("grpo", "aggregate=token_mean"),
        ("dr_grpo", "advantage={name: grpo, epsilon: 1.0e-4}"),
        ("dapo", "loss={name: ppo_clip, clip_low: 0.1, clip_high: 0.2}"),
        ("kl", "kl.estimator=k2"),
        ("truncated", "mask_truncated=false"),
        ("importance, token_truncate", "correction.cap=1.5"),
        ("importance, token_truncate", "correction=null"),
        ("importance, token_truncate", "correction={name: token_mis, cap: 1.1}"),
        ("importance, token_mask", "correction.floor=null"),
        ("importance, sequence_truncate", "correction={name: token_tis, cap: 1.3}"),
        ("importance, sequence_mask", "correction={name: sequence_tis, cap: 1.3}"),
        ("importance, sequence_mask", "correction={name: bypass_sequence_mis, cap: 1.3}"),
        ("rloo", "loss={name: ppo_clip, clip_low: 0.3, clip_high: 0.5}"),
        ("rloo", "advantage=dr_grpo"),
    ],
)
def test_another_setting_disagrees_with_trl(
    tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, name: str, setting: str
) -> None:
    """Each setting that a case names is seen by the oracle; the least of them, ε of σ, at a hundred times the tolerance."""
    case = CASES[name]
    distance, _ = disagreement(case, recipe_of(case, f"algorithm.{setting}"), 0, tiny_spec, tokenizer)
    assert distance > 100 * case.tolerance


# -- the objective -------------------------------------------------------------------------------------------------------


def random_inputs(seed: int, per_token: bool) -> LossInputs:
    """Eight completions of up to LONGEST tokens, some of which the policy did not sample. Ratios from about 0.3 to 3, or, with
    advantages by completion, nearer to 1. Entropies have a gradient too."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    shape = (8, LONGEST)
    lengths = torch.randint(1, LONGEST + 1, (8, 1), generator=generator)
    mask = (torch.arange(LONGEST) < lengths) * (torch.rand(shape, generator=generator) < 0.8)
    mask[:, 0] = True
    old = -4 * torch.rand(shape, dtype=torch.float64, generator=generator)
    return LossInputs(
        logprobs=(old + (0.4 if per_token else 0.1) * normal(*shape)).requires_grad_(),
        entropy=torch.rand(shape, generator=torch.Generator().manual_seed(seed)).double().requires_grad_(),
        old_logprobs=old,
        rollout_logprobs=old,
        reference_logprobs=old + 0.5 * normal(*shape),
        advantages=normal(*shape) if per_token else normal(8, 1).expand(shape),
        loss_mask=mask.double(),
    )


def our_objective(recipe: RL, inputs: LossInputs) -> tuple[Tensor, Tensor, float]:
    """Loss, its gradient on the log-probs and entropies, and the share of clipped tokens."""
    objective = algorithm.objective(recipe)
    batch: Any = SimpleNamespace(loss_mask=inputs.loss_mask)
    loss = objective(replace(inputs, prepared=objective.prepare(lambda: inputs, batch)))
    weights = token_weights(inputs.loss_mask, recipe.algorithm.aggregate, recipe.rollout.max_new_tokens)
    value = (loss.per_token * weights).sum()
    clipped = loss.metrics["clip_fraction"].value if "clip_fraction" in loss.metrics else math.nan
    return value.detach(), gradient_of(value, inputs), clipped


def gradient_of(value: Tensor, inputs: LossInputs) -> Tensor:
    """(2, b, t): on the log-probs and on the entropies."""
    return torch.stack(torch.autograd.grad(value, [inputs.logprobs, inputs.entropy], materialize_grads=True))


def their_objective(
    case: Case, inputs: LossInputs, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> tuple[Tensor, Tensor, float]:
    """TRL's `_compute_loss`, told that the model's log-probs are these."""
    mask = inputs.loss_mask
    trainer = trainer_of(case, spec, tokenizer, ["1+1="] * len(mask), [0.0] * len(mask), cut=1)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (inputs.logprobs, inputs.entropy, None)
    ids = torch.zeros(mask.shape, dtype=torch.long)
    per_token = "loss_type" in case.theirs
    batch = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": inputs.advantages if per_token else inputs.advantages[:, 0],
        "old_per_token_logps": inputs.old_logprobs,
        "old_logps": (inputs.old_logprobs * mask).sum(1),
        "ref_per_token_logps": inputs.reference_logprobs,
        "num_items_in_batch": mask.sum(),
    }
    value = trainer._compute_loss(trainer.model, batch)
    clipped = (trainer._metrics["train"]["clip_ratio/region_mean"] or [math.nan])[0]
    return value.detach(), gradient_of(value, inputs), clipped


OBJECTIVES = {name: CASES[name] for name in ("grpo", "dr_grpo", "dapo", "gspo", "kl", "rloo")} | TERMS
BY_COMPLETION = ("gspo", "rloo")  # their ratios, of which ours counts the tokens and TRL the completions


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_as_a_function_of_logprobs_the_loss_is_trls(
    tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, name: str, seed: int
) -> None:
    """Proves that `Objective` and `token_weights` are `GRPOTrainer._compute_loss` (`RLOOTrainer._compute_loss` for "rloo") of
    TRL 1.16 in value and gradient, for masks with holes and advantages that differ by token, where the ratio is not of a whole
    completion. float64, 1e-12.

    Does not exercise the model, the estimate of advantages, nor the importance weight, which TRL makes elsewhere; nor an
    entropy bonus beside another aggregation than `token_mean` or beside `top_quantile`, where TRL's remains a mean over the
    tokens of its own mask."""
    case, inputs = OBJECTIVES[name], random_inputs(seed, per_token=name not in BY_COMPLETION)
    value, gradient, clipped = our_objective(recipe_of(case), inputs)
    their_value, their_gradient, their_clipped = their_objective(case, inputs, tiny_spec, tokenizer)
    torch.testing.assert_close(value, their_value, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, their_gradient, atol=1e-12, rtol=0)
    if name in CASES and name not in BY_COMPLETION:
        assert clipped == pytest.approx(their_clipped, abs=1e-6)
        assert 0.1 < clipped < 0.9


@pytest.mark.parametrize("seed", range(3))
def test_bypass_is_trls_loss_with_the_sampler_as_the_old_policy(
    tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, seed: int
) -> None:
    """What TRL itself never does, which recomputes the old log-probs; told that the sampler's are those, its `_compute_loss` is
    ours with `correction: bypass`, whatever our old log-probs are. float64, 1e-12."""
    case, inputs = CASES["dapo"], random_inputs(seed, per_token=True)
    value, gradient, clipped = our_objective(
        recipe_of(case, "algorithm.correction=bypass"), replace(inputs, old_logprobs=torch.zeros_like(inputs.old_logprobs))
    )
    their_value, their_gradient, their_clipped = their_objective(
        case, replace(inputs, old_logprobs=inputs.rollout_logprobs), tiny_spec, tokenizer
    )
    torch.testing.assert_close(value, their_value, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, their_gradient, atol=1e-12, rtol=0)
    assert clipped == pytest.approx(their_clipped, abs=1e-6)


@pytest.mark.parametrize(
    "mutation",
    [
        lambda inputs: replace(inputs, advantages=-inputs.advantages),
        lambda inputs: replace(inputs, old_logprobs=inputs.old_logprobs.roll(1, 1)),
        lambda inputs: replace(inputs, old_logprobs=inputs.logprobs.detach()),
        lambda inputs: replace(inputs, loss_mask=torch.ones_like(inputs.loss_mask)),
    ],
    ids=["flipped advantages", "log-probs of the token before", "no ratio", "no mask"],
)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_broken_objective_disagrees_with_trl(
    tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, name: str, mutation: Callable[[LossInputs], LossInputs]
) -> None:
    case, inputs = OBJECTIVES[name], random_inputs(0, per_token=name not in BY_COMPLETION)
    _, gradient, _ = our_objective(recipe_of(case), mutation(inputs))
    _, their_gradient, _ = their_objective(case, inputs, tiny_spec, tokenizer)
    assert (gradient - their_gradient).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("gspo", "loss={name: gspo, clip_low: 0.5, clip_high: 0.5}"),
        ("gspo", "loss={name: ppo_clip_sequence, clip_low: 3.0e-4, clip_high: 4.0e-4}"),
        ("two_sided_clip", "loss={name: two_sided_clip, delta: 2.0, clip_low: 0.1, clip_high: 0.28}"),
        ("two_sided_clip", "loss={name: ppo_clip, clip_low: 0.1, clip_high: 0.28}"),
        ("cispo", "loss={name: cispo, ratio_max: 2.0}"),
        ("cispo", "loss={name: cispo, ratio_max: 1.5, ratio_min: 0.8}"),
        ("sapo", "loss={name: sapo, temperature_positive: 1.05, temperature_negative: 1.0}"),
        ("uncertain", "entropy={top_quantile: 0.5}"),
        ("bonus", "entropy={bonus: 0.2}"),
        ("bonus", "aggregate=sequence_mean"),
    ],
)
def test_another_setting_of_the_objective_disagrees_with_trl(
    tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, name: str, setting: str
) -> None:
    case, inputs = OBJECTIVES[name], random_inputs(0, per_token=name not in BY_COMPLETION)
    _, gradient, _ = our_objective(recipe_of(case, f"algorithm.{setting}"), inputs)
    _, their_gradient, _ = their_objective(case, inputs, tiny_spec, tokenizer)
    assert (gradient - their_gradient).abs().max() > 1e-4


def test_the_default_of_trls_cispo_makes_the_step_five_times_smaller(
    tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The trap that `cispo` tells of: without an `epsilon_high`, TRL caps every ratio at its `epsilon`, 0.2. On-policy, where
    r = 1 and nothing should be capped."""
    inputs = random_inputs(0, per_token=True)
    inputs = replace(inputs, old_logprobs=inputs.logprobs.detach(), rollout_logprobs=inputs.logprobs.detach())
    _, gradient, _ = our_objective(recipe_of(TERMS["cispo"]), inputs)
    _, theirs, _ = their_objective(Case("", {"loss_type": "cispo"}), inputs, tiny_spec, tokenizer)
    torch.testing.assert_close(gradient, 5 * theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("name", "factor"), [("dapo", 1.0), ("grpo", 8 / 6), ("dr_grpo", 1.0), ("rloo", 8 / 6)])
def test_a_mean_over_completions_counts_those_in_the_loss_where_trl_counts_all(
    tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, name: str, factor: float
) -> None:
    """Where we differ by intent. With two of eight completions masked out (truncated), TRL's `grpo` and RLOO go on dividing by
    eight: the fewer completions survive, the smaller its step. Dividing by tokens (`dapo`) or by a constant, we agree."""
    case, inputs = CASES[name], random_inputs(0, per_token=name != "rloo")
    inputs.loss_mask[[2, 5]] = 0
    _, gradient, _ = our_objective(recipe_of(case), inputs)
    _, their_gradient, _ = their_objective(case, inputs, tiny_spec, tokenizer)
    torch.testing.assert_close(gradient, factor * their_gradient, atol=1e-12, rtol=0)
