"""Log-probs, rewards, losses and gradients against TRL 1.16: its DPOTrainer (sigmoid and IPO), and CPOTrainer for SimPO, both
experimental and with `cpo_alpha` 0. The trainers get the prompts and answers as texts and encode them themselves.

Float32, one batch of pairs of different lengths, a policy that is not its reference. Not exercised: the optimiser, LoRA,
several processes, truncation (theirs cuts prompts too).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlcore.batch import TrainingBatch
from rlcore.models import ModelSpec
from rlcore.recipe.load import load
from rlcore.recipe.schema import Preference
from trainers.objective import Part, token_weights
from trainers.preference.objective import PairInputs, PairLearner
from trainers.preference.pairs import Pair
from trainers.preference.trainer import Side, _reference, build_learner, preference_loss
from trainers.scorer import passes

TEXTS = [("3+4=?", "3+4=7\n#### 7", "#### 8"), ("a 2-5+1=?", "#### 8", "2-5=7\n7+1=8\n#### 8"), ("1=?", "1", "wait 2\n1")]


def perturbed(model: PreTrainedModel) -> PreTrainedModel:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def pairs(tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    def ids(text: str, ends: bool) -> tuple[int, ...]:
        found = tokenizer(text, add_special_tokens=False).input_ids
        return (*found, tokenizer.eos_token_id) if ends else tuple(found)

    return [
        Pair(str(i), ids(f"{p}\n", False), ids(better, True), ids(worse, True), {})
        for i, (p, better, worse) in enumerate(TEXTS)
    ]


@pytest.fixture
def ours(tiny: Path, tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, pairs: list[Pair], tmp_path: Path) -> Callable:
    def make(loss: str) -> tuple[PairLearner, TrainingBatch]:
        recipe_file = tmp_path / "r.yaml"
        recipe_file.write_text(f"job: preference\nmodel: {tiny}\ndata: x\nupdate: {{tokens_per_microbatch: 60}}\n")
        recipe = load([str(recipe_file), f"loss={loss}"]).recipe
        assert isinstance(recipe, Preference)
        made = preference_loss(recipe)
        start = tiny_spec.load()
        side = Side(pairs, _reference(recipe, start, pairs) if made.reward.relative else None)
        learner = build_learner(recipe, perturbed(tiny_spec.load()), tokenizer, made, len(pairs))
        return learner, side.batch(range(len(pairs)))

    return make


def sums(learner: PairLearner, batch: TrainingBatch) -> Tensor:
    """(n, 2) log-probs of the answers."""
    return (learner.logprobs(batch.graded) * batch.graded.loss_mask).sum(1).view(-1, 2)


def loss_and_gradient(learner: PairLearner, batch: TrainingBatch) -> tuple[float, dict[str, Tensor]]:
    """As `Learner._step` has them, without the optimiser's step, in several micro-batches."""
    weights, total = token_weights(batch.graded.loss_mask, "sequence_sum", 1), 0.0
    cut = passes(batch.graded, range(len(weights)), learner.cut, learner.together)
    assert len(cut) > 1
    for each in cut:
        inputs: PairInputs = learner.objective.inputs(Part(batch, each.rows, None), learner.forward(batch.graded, each))
        per_token = learner.objective(inputs).per_token
        value = (per_token * weights[each.rows][:, : per_token.shape[1]]).sum()
        value.backward()
        total += value.item()
    return total, {name: p.grad for name, p in learner.model.named_parameters() if p.grad is not None}


def rows(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
    return [{"prompt": f"{prompt}\n", "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in TEXTS]


@pytest.mark.parametrize(("loss", "theirs"), [("{name: dpo, beta: 0.3}", "sigmoid"), ("{name: ipo, beta: 0.3}", "ipo")])
def test_dpo_and_ipo_are_trls(
    loss: str, theirs: str, ours: Callable, tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, settings = perturbed(tiny_spec.load()), common(tmp_path)
    trainer = DPOTrainer(
        model=model,
        ref_model=tiny_spec.load(),
        args=DPOConfig(**settings, loss_type=[theirs], beta=0.3, max_length=None),
        train_dataset=Dataset.from_list(rows(tokenizer)),
        processing_class=copy.deepcopy(tokenizer),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    value = trainer.compute_loss(model, batch)
    value.backward()
    compare(ours(loss), value, model)
    logged = {name: values[-1] for name, values in trainer._metrics["train" if model.training else "eval"].items()}
    learner, mine = ours(loss)
    assert sums(learner, mine).mean(0).tolist() == pytest.approx([logged["logps/chosen"], logged["logps/rejected"]], rel=1e-6)


def test_simpo_is_trls(ours: Callable, tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of being experimental
        from trl.experimental.cpo import CPOConfig, CPOTrainer
    from datasets import Dataset

    model, settings = perturbed(tiny_spec.load()), common(tmp_path)
    trainer = CPOTrainer(
        model=model,
        args=CPOConfig(**settings, loss_type="simpo", beta=2.0, simpo_gamma=0.7, cpo_alpha=0.0, max_length=128),
        train_dataset=Dataset.from_list(rows(tokenizer)),
        processing_class=copy.deepcopy(tokenizer),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    value, logged = trainer.get_batch_loss_metrics(model, batch)
    value.backward()
    learner, mine = ours("{name: simpo, beta: 2.0, gamma: 0.7}")
    compare((learner, mine), value, model)
    rewards = learner.judged(mine)["rewards"].mean(0).tolist()
    assert rewards == pytest.approx([float(logged["rewards/chosen"]), float(logged["rewards/rejected"])], rel=1e-6)


def common(folder: Path) -> dict[str, Any]:
    return dict(
        output_dir=str(folder),
        per_device_train_batch_size=len(TEXTS),
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )


def compare(mine: tuple[PairLearner, TrainingBatch], value: Tensor, model: PreTrainedModel) -> None:
    """The loss to 1e-6 and every parameter's gradient to 1e-6 of the largest."""
    loss, gradient = loss_and_gradient(*mine)
    assert loss == pytest.approx(value.item(), rel=1e-6)
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradient.keys() == theirs.keys()
    largest = max(g.abs().max().item() for g in theirs.values())
    for name, each in theirs.items():
        assert torch.allclose(gradient[name], each, rtol=1e-4, atol=1e-6 * max(1.0, largest)), name
