"""Supervised fine-tuning on solutions, through TRL's SFTTrainer: the warm start of reasoners, and `job: sft`.

Prompts and solutions are encoded here, by the same prompter that RL uses, so that the model is later asked exactly what it was
taught; the loss is on the solution and its end of turn only. A solution that is `unfinished` in its problem's `meta` has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from rlcore.errors import UserError
from rlcore.prompts import Prompter
from rlcore.recipe.schema import Sft
from rlcore.types import Problem
from trainers.outliers import base_of, compressed, delta_names

IGNORED = -100  # the label of tokens outside the loss, by convention of transformers

Log = Callable[[int, Mapping[str, float]], None]


def train(
    recipe: Sft,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompter: Prompter,
    problems: Sequence[Problem],
    folder: Path,
    log: Log,
) -> dict[str, float]:
    """Train, write the plain checkpoint to `folder`/model, outliers as codes and Δ to `folder`/compressed too, and return the
    last loss and counts."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from trainers.near_reference import NearReference
    from trainers.own_loss import OwnLoss

    adds = getattr(model.config, "load_balance_weight", None) is not None
    if adds and recipe.kl is not None:
        raise UserError("kl cannot be learned together with the load-balancing term of the model's own loss: leave kl out")
    context = getattr(model.config, "max_position_embeddings", None) or recipe.max_length
    rows = [_encode(problem, prompter, min(recipe.max_length, context)) for problem in problems]
    settings = recipe.optimizer
    steps = recipe.epochs * -(-len(rows) // recipe.batch_size)
    cpu = next(model.parameters()).device.type == "cpu"
    arguments = SFTConfig(
        output_dir=str(folder / "trainer"),
        seed=recipe.seed,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        max_length=recipe.max_length,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else "cosine",
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        max_grad_norm=settings.max_grad_norm,
        bf16=recipe.dtype == "bfloat16",
        use_cpu=cpu,
        gradient_checkpointing=False,
        logging_steps=max(1, steps // 50),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    if arguments.n_gpu > 1:  # transformers would split each batch over them, and take one of that many times the size
        raise UserError(f"job: sft trains on one GPU and sees {arguments.n_gpu}: launch with CUDA_VISIBLE_DEVICES=0")
    make = OwnLoss if adds else SFTTrainer if recipe.kl is None else partial(NearReference, coefficient=recipe.kl)
    trainer = make(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[_Reporter(log)],
    )
    trainer.remove_callback(PrinterCallback)  # the run's own log says it all
    result = trainer.train()
    tuned = trainer.model
    deltas = {name: tuned.get_parameter(key).detach() for name, key in delta_names(tuned)}
    plain = tuned.merge_and_unload() if isinstance(tuned, PeftModel) else tuned
    plain.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    if deltas:
        compressed(base_of(tuned), deltas, plain.state_dict()).save(folder / "compressed", tokenizer)
    return {"loss": result.training_loss, "steps": result.global_step, "examples": len(rows)}


def _encode(problem: Problem, prompter: Prompter, most: int) -> dict[str, list[int]]:
    solution = problem.meta.get("solution")
    if not solution:
        raise UserError(f"problem {problem.id} has no solution to learn from: this data source cannot be used for job: sft")
    prompt, completion = prompter.render(problem), prompter.complete(str(solution), ends=not problem.meta.get("unfinished"))
    if len(prompt) + len(completion) > most:
        count = len(prompt) + len(completion)
        raise UserError(
            f"problem {problem.id} has {count} tokens with its solution, and max_length and the model's context allow {most}"
        )
    return {"input_ids": [*prompt, *completion], "labels": [IGNORED] * len(prompt) + [*completion]}


class _Reporter(TrainerCallback):
    """Passes the trainer's numbers on to the run."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.log(state.global_step, {key: float(value) for key, value in logs.items()})
