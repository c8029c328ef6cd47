"""The learner: exact log-probs, gradients that do not depend on how a batch is cut, checkpoints, LoRA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerBase

from compress.codec import codec
from rlcore.batch import GradedBatch, TrainingBatch, cut_by_length, rows
from rlcore.errors import UserError
from rlcore.models import ModelSpec, load_tokenizer, without_weights
from rlcore.protocols import Superseded
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL, Optimizer, Update
from rollout.codes import decoded
from tests.conftest import learner_of
from trainers.build import build_learner, build_policy, build_reference
from trainers.learner import Learner, learning_rate
from trainers.losses.ppo_clip import ppo_clip
from trainers.objective import Objective
from trainers.scorer import WithoutAdapters, microbatches

LENGTHS = [5, 1, 7, 3, 9, 2]


@pytest.fixture
def make_learner(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Learner]:
    def make(lora: bool = False, optimizer: Optimizer | None = None, aggregate: str = "token_mean", **update) -> Learner:
        model: Any = tiny_spec.load()
        if lora:
            torch.manual_seed(0)
            config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
            model = get_peft_model(model, config)
        rate = optimizer or Optimizer(learning_rate=1e-3)
        return learner_of(model, tokenizer, optimizer=rate, update=Update(**update), aggregate=aggregate, total_steps=10)

    return make


@pytest.fixture
def training(make_batch: Callable) -> TrainingBatch:
    graded = make_batch([1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1], LENGTHS)
    advantages = torch.randn(graded.tokens.shape, generator=torch.Generator().manual_seed(5))
    return TrainingBatch(graded, advantages, None)


def plain_logprobs(model, batch: GradedBatch) -> torch.Tensor:
    """One unpadded forward pass per completion."""
    result = torch.zeros(batch.tokens.shape)
    for i, prompt in enumerate(batch.prompt_ids):
        n = int(batch.lengths[i])
        ids = torch.tensor([[*prompt, *batch.tokens[i, :n].tolist()]])
        logits = model(ids).logits[0, len(prompt) - 1 : -1] / batch.sampling.temperature
        result[i, :n] = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0].detach()
    return result


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_logprobs_are_those_of_a_plain_forward_pass(
    make_learner: Callable, training: TrainingBatch, temperature: float, chunk: int
) -> None:
    learner = make_learner(logits_chunk=chunk, tokens_per_microbatch=20)
    batch = replace(training.graded, sampling=replace(training.graded.sampling, temperature=temperature))
    torch.testing.assert_close(learner.logprobs(batch), plain_logprobs(learner.model, batch), atol=1e-5, rtol=0)


def gradients(learner: Learner, batch: TrainingBatch) -> dict[str, torch.Tensor]:
    """Of an update, as the optimiser finds them."""
    found: dict[str, torch.Tensor] = {}
    learner.backend.optimizer.register_step_pre_hook(
        lambda *_: found.update({name: p.grad.clone() for name, p in learner.parameters.items()})
    )
    learner.update(batch)
    return found


@pytest.mark.parametrize("aggregate", ["token_mean", "sequence_mean", "constant"])
def test_the_cut_into_microbatches_changes_nothing(make_learner: Callable, training: TrainingBatch, aggregate: str) -> None:
    """Gradients of one micro-batch, of several, of one completion each, and of the rows in another order are the same to 1e-6.
    A local denominator would change them by the ratio of micro-batch to batch."""
    unclipped = Optimizer(max_grad_norm=1e9)
    whole = gradients(make_learner(aggregate=aggregate, optimizer=unclipped), training)
    order = [3, 0, 5, 2, 4, 1]
    shuffled = TrainingBatch(rows(training.graded, order), training.advantages[order], None)
    for budget, batch in ((25, training), (1, training), (25, shuffled)):
        cut = gradients(make_learner(aggregate=aggregate, optimizer=unclipped, tokens_per_microbatch=budget), batch)
        for name, gradient in whole.items():
            torch.testing.assert_close(cut[name], gradient, atol=1e-6, rtol=1e-4)


def test_the_gradient_is_that_of_the_written_loss(make_learner: Callable, training: TrainingBatch) -> None:
    """On-policy, PPO's gradient is that of −Σ A·log π / Σ mask."""
    learner = make_learner(optimizer=Optimizer(learning_rate=1e-3, max_grad_norm=1e9))
    ours = gradients(learner, training)
    reference = make_learner()
    graded = training.graded
    total = torch.zeros(())
    for i, prompt in enumerate(graded.prompt_ids):
        n = int(graded.lengths[i])
        ids = torch.tensor([[*prompt, *graded.tokens[i, :n].tolist()]])
        logprobs = reference.model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total = total - (training.advantages[i, :n] * logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0]).sum()
    (total / graded.loss_mask.sum()).backward()
    for name, p in reference.parameters.items():
        torch.testing.assert_close(ours[name], p.grad, atol=1e-6, rtol=1e-4)


def test_tokens_outside_the_loss_mask_teach_nothing(make_learner: Callable, training: TrainingBatch) -> None:
    mask = training.graded.loss_mask.clone()
    mask[2, 4:] = 0
    masked = replace(training.graded, loss_mask=mask)
    changed = training.advantages.clone()
    changed[2, 4:] = 100.0
    first = gradients(make_learner(), TrainingBatch(masked, training.advantages, None))
    second = gradients(make_learner(), TrainingBatch(masked, changed, None))
    for name in first:
        assert torch.equal(first[name], second[name])


def test_several_minibatches_measure_the_ratio_to_the_policy_before_the_step(
    make_learner: Callable, training: TrainingBatch
) -> None:
    learner = make_learner(minibatches=2, epochs=2)
    metrics = learner.update(training)
    assert learner.updates == 4
    assert metrics["ratio/max"].value > 1.0


def test_an_update_follows_the_advantage(make_learner: Callable, training: TrainingBatch) -> None:
    """Tokens with A > 0 become likelier, those with A < 0 less likely, on average."""
    learner = make_learner()
    before = learner.logprobs(training.graded)
    for _ in range(5):
        learner.update(training)
    moved = (learner.logprobs(training.graded) - before) * training.graded.loss_mask
    assert (moved * training.advantages).sum() > 0


def test_a_gradient_that_is_not_finite_is_refused_and_changes_nothing(make_learner: Callable, training: TrainingBatch) -> None:
    learner = make_learner()
    before = {name: p.clone() for name, p in learner.parameters.items()}
    with pytest.raises(UserError, match="gradient's norm is nan"):
        learner.update(replace(training, advantages=training.advantages * torch.nan))
    for name, p in learner.parameters.items():
        assert torch.equal(p, before[name])


def test_an_empty_batch_changes_nothing(make_learner: Callable, training: TrainingBatch) -> None:
    learner = make_learner()
    assert learner.update(TrainingBatch(rows(training.graded, []), training.advantages[:0], None)) == {}
    assert learner.updates == 0


@pytest.mark.parametrize("lora", [False, True])
def test_a_saved_learner_goes_on_to_the_bit(
    make_learner: Callable, training: TrainingBatch, tmp_path: Path, lora: bool
) -> None:
    unbroken = make_learner(lora=lora)
    unbroken.update(training)
    unbroken.save(tmp_path)
    unbroken.update(training)
    resumed = make_learner(lora=lora)
    resumed.load(tmp_path)
    resumed.update(training)
    assert resumed.updates == 2
    for name, p in unbroken.parameters.items():
        assert torch.equal(resumed.parameters[name], p)


@pytest.mark.parametrize("lora", [False, True])
def test_a_checkpoint_is_a_plain_model(make_learner: Callable, training: TrainingBatch, tmp_path: Path, lora: bool) -> None:
    """`from_pretrained` gives the learner's log-probs: adapters are merged in."""
    from transformers import AutoModelForCausalLM

    learner = make_learner(lora=lora)
    learner.update(training)
    learner.save(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(plain_logprobs(model, training.graded), learner.logprobs(training.graded), atol=1e-5, rtol=0)


def test_lora_trains_the_adapters_only(make_learner: Callable, training: TrainingBatch) -> None:
    learner = make_learner(lora=True)
    assert all("lora_" in name for name in learner.parameters)
    base = {name: p.clone() for name, p in learner.model.named_parameters() if "lora_" not in name}
    learner.update(training)
    for name, p in learner.model.named_parameters():
        if name in base:
            assert torch.equal(p, base[name])


def test_logprobs_are_without_dropout_and_training_goes_on_with_it(
    tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, training: TrainingBatch
) -> None:
    model = tiny_spec.load()
    config = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    learner = learner_of(get_peft_model(model, config), tokenizer)
    assert torch.equal(learner.logprobs(training.graded), learner.logprobs(training.graded))
    assert learner.model.training


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"warmup_steps": 2}, {0: 0.5, 1: 1.0, 2: 1.0, 9: 1.0}),
        ({"schedule": "cosine"}, {0: 1.0, 5: 0.5, 10: 0.0}),
        ({"warmup_steps": 2, "schedule": "cosine"}, {0: 0.5, 2: 1.0, 6: 0.5, 10: 0.0}),
    ],
)
def test_learning_rate(settings: dict, rates: dict[int, float]) -> None:
    for update, rate in rates.items():
        assert learning_rate(Optimizer(learning_rate=1.0, **settings), update, 10) == pytest.approx(rate)


def test_microbatches_keep_the_budget_and_every_row(training: TrainingBatch) -> None:
    for budget in (1, 20, 30, 1000):
        cut = list(microbatches(training.graded, range(6), budget))
        assert sorted(i for part in cut for i in part) == list(range(6))
        for part in cut:
            longest = max(3 + LENGTHS[i] for i in part)
            assert len(part) == 1 or longest * len(part) <= budget


def test_less_than_half_of_a_microbatch_is_padding() -> None:
    """Whatever the budget; lengths of 16 to 512 need at most five more parts for it than one budget does."""
    lengths = dict(enumerate([16] * 40 + [32] * 9 + [33, 66, 67, 200, 512]))
    assert [sorted({lengths[i] for i in part}) for part in cut_by_length(lengths, 1 << 20)] == [
        [16, 32],
        [33, 66],
        [67],
        [200],
        [512],
    ]


def test_cutting_a_batch_measures_its_lengths_once(training: TrainingBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each row would take time that grows with the square of the batch."""
    measured: list[int] = []
    measure = GradedBatch.lengths.fget
    monkeypatch.setattr(GradedBatch, "lengths", property(lambda batch: measured.append(1) or measure(batch)))
    list(microbatches(training.graded, range(6), 20))
    assert len(measured) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_of_a_lora_policy_stays_the_model_it_started_from(
    tiny_spec: ModelSpec, training: TrainingBatch, dtype: str
) -> None:
    """To the bit, after updates that moved the policy, as adapters start at zero; and asking leaves the policy as it was."""
    recipe = recipe_of(tiny_spec, "lora={rank: 4}", f"dtype={dtype}", "optimizer.learning_rate=1e-2")
    policy = build_policy(recipe, tiny_spec.location)
    learner = build_learner(recipe, policy, load_tokenizer(tiny_spec.location), Objective(ppo_clip))
    start = learner.logprobs(training.graded)
    reference = build_reference(recipe, tiny_spec.location, policy)
    for _ in range(3):
        learner.update(training)
    moved = learner.logprobs(training.graded)
    assert (moved - start).abs().max() > 0.01
    assert reference is not None
    assert torch.equal(reference.logprobs(training.graded), start)
    assert torch.equal(learner.logprobs(training.graded), moved)
    assert learner.model.training
    assert all(p.requires_grad for p in learner.parameters.values())


def test_the_reference_needs_a_second_model_only_where_all_weights_are_trained(tiny_spec: ModelSpec) -> None:
    for lora, shared in (("lora={rank: 4}", True), ("lora=null", False)):
        recipe = recipe_of(tiny_spec, lora)
        policy = build_policy(recipe, tiny_spec.location)
        reference = build_reference(recipe, tiny_spec.location, policy)
        assert reference is not None
        assert isinstance(reference, WithoutAdapters) == (reference.model is policy) == shared
        assert not hasattr(reference, "optimizer")


def recipe_of(spec: ModelSpec, *overrides: str) -> RL:
    kl = "algorithm.kl={estimator: k3, coefficient: 0.1}"
    recipe = load(["quickstart", f"model={spec.location}", "device=cpu", "eval=null", kl, *overrides]).recipe
    assert isinstance(recipe, RL)
    return recipe


def test_the_buckets_of_an_update_are_never_made_of_newer_weights(make_learner: Callable, training: TrainingBatch) -> None:
    """They can be asked for again until the learner goes on; then there is an error in their place."""
    learner = make_learner()
    update = learner.weights(1)
    once, again = ([bucket.checksums for bucket in update.buckets] for _ in range(2))
    assert once == again
    learner.bucket_bytes = 1
    middle = iter(learner.weights(1).buckets)
    next(middle)
    learner.update(training)
    for rest in (middle, update.buckets):
        with pytest.raises(Superseded):
            list(rest)


@pytest.fixture
def compressing(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Callable[[bool], Learner]:
    """A learner that serves three bits of each weight; with LoRA, those of some modules as they are."""

    def make(lora: bool) -> Learner:
        model: Any = tiny_spec.load()
        if lora:
            torch.manual_seed(0)
            config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
            model = get_peft_model(model, config)
        shapes = partial(without_weights, tiny_spec.location)
        three_bits = codec([("rtn", {"bits": 3, "run": 0})], ["q_proj"], torch.float32, shapes, tiny_spec.load)
        return learner_of(model, tokenizer, codec=three_bits)

    return make


@pytest.mark.parametrize("lora", [False, True])
def test_served_logprobs_are_those_of_the_weights_that_were_sent(
    compressing: Callable, tiny_spec: ModelSpec, training: TrainingBatch, lora: bool
) -> None:
    learner, batch = compressing(lora), training.graded
    sent: dict[str, torch.Tensor] = {}
    update = learner.weights(1, compressed=True)
    for bucket in update.buckets:
        sent |= decoded(bucket.tensors, update.manifest.compressed, torch.float32)
    plain: Any = tiny_spec.load()
    plain.load_state_dict(sent, strict=False)
    mask = batch.present.bool()
    torch.testing.assert_close(learner.served_logprobs(batch)[mask], plain_logprobs(plain, batch)[mask], atol=1e-5, rtol=0)
    assert (learner.served_logprobs(batch) - learner.logprobs(batch)).abs().max() > 1e-3
    learner.weights(2)
    assert torch.equal(learner.served_logprobs(batch), learner.logprobs(batch))


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_served_logprobs_leave_no_trace(
    compressing: Callable, training: TrainingBatch, monkeypatch: pytest.MonkeyPatch, lora: bool, raises: bool
) -> None:
    """The learner's own weights come back to the bit, in the same memory, and learn on; also where computing fails."""
    learner, control = compressing(lora), compressing(lora)
    before = {name: (p.data_ptr(), p.detach().clone(), p.requires_grad) for name, p in learner.model.named_parameters()}
    learner.weights(1, compressed=True)
    if raises:

        def fail(*_: object) -> None:
            assert any(not torch.equal(p, before[name][1]) for name, p in learner.model.named_parameters())
            raise MemoryError

        with monkeypatch.context() as patched:
            patched.setattr(learner, "outputs", fail)
            with pytest.raises(MemoryError):
                learner.served_logprobs(training.graded)
    else:
        learner.served_logprobs(training.graded)
    for name, parameter in learner.model.named_parameters():
        pointer, value, learns = before[name]
        assert (parameter.data_ptr(), parameter.requires_grad) == (pointer, learns)
        assert torch.equal(parameter, value)
    learner.update(training)
    control.update(training)
    for name, parameter in control.parameters.items():
        assert torch.equal(parameter, learner.parameters[name])


def test_an_update_says_how_many_bytes_it_brings(compressing: Callable) -> None:
    learner = compressing(False)
    for compressed in (False, True):
        update = learner.weights(1, compressed)
        assert update.manifest.nbytes == sum(t.nbytes for bucket in update.buckets for t in bucket.tensors.values())


def test_the_buckets_of_a_compressed_update_are_never_made_of_newer_weights(
    compressing: Callable, training: TrainingBatch
) -> None:
    learner = compressing(False)
    update = learner.weights(1, compressed=True)
    learner.update(training)
    with pytest.raises(Superseded):
        list(update.buckets)
