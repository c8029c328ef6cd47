"""The learner on plain torch: one model, one optimiser, any objective. Keeps the contract of `rlcore.protocols.Learner`.

A step's batch is cut into mini-batches (one optimiser step each), and those into micro-batches (`trainers.scorer`, which it is
one of). Denominators are made from the whole mini-batch, so the cut into micro-batches changes memory and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlcore.batch import TrainingBatch
from rlcore.errors import UserError
from rlcore.protocols import WeightUpdate
from rlcore.recipe.schema import Optimizer, Update
from rlcore.run.metrics import Max, Mean, Metrics, merge
from rollout.sync import weight_update
from trainers.objective import Aggregation, LossInputs, Objective, token_weights
from trainers.scorer import Scorer, microbatches


class Learner(Scorer):
    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        objective: Objective,
        *,
        optimizer: Optimizer,
        update: Update,
        aggregate: Aggregation,
        constant_length: int,
        dtype: str,
        total_steps: int,
        serve: Literal["merged", "adapter"] = "merged",
    ) -> None:
        super().__init__(model.train(), update, dtype)
        self.tokenizer, self.objective, self.settings = tokenizer, objective, optimizer
        self.aggregate, self.constant_length = aggregate, constant_length
        self.total_updates = total_steps * update.minibatches * update.epochs
        self.updates = 0
        self.serve = serve
        if update.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=optimizer.learning_rate,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
        )

    # -- learning --------------------------------------------------------------------------------------------------------

    def update(self, batch: TrainingBatch) -> Metrics:
        """`epochs` passes over the batch. An empty batch teaches nothing and changes nothing."""
        size = len(batch.advantages)
        if not size:
            return {}
        once = self.cut.epochs == self.cut.minibatches == 1
        old = None if once else self.logprobs(batch.graded)  # once: the old policy is the current one
        parts = [
            self._step(batch, old, index.tolist())
            for _ in range(self.cut.epochs)
            for index in torch.arange(size).tensor_split(min(size, self.cut.minibatches))
        ]
        return merge(parts)

    def _step(self, batch: TrainingBatch, old: Tensor | None, index: Sequence[int]) -> Metrics:
        """One optimiser step on the completions `index`."""
        weights = torch.zeros_like(batch.advantages)
        weights[index] = token_weights(batch.graded.loss_mask[index], self.aggregate, self.constant_length)
        self.optimizer.zero_grad(set_to_none=True)
        parts, total = [], 0.0
        for rows in microbatches(batch.graded, index, self.cut.tokens_per_microbatch):
            inputs = self._inputs(batch, old, rows)
            loss = self.objective(inputs)
            value = (loss.per_token * weights[rows][:, : inputs.loss_mask.shape[1]].to(loss.per_token.device)).sum()
            value.backward()
            total += value.item()
            parts.append(loss.metrics)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm).item()
        if not math.isfinite(norm):
            raise UserError(f"the gradient's norm is {norm}: lower optimizer.learning_rate, or use dtype float32")
        rate = learning_rate(self.settings, self.updates, self.total_updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.updates += 1
        return merge([*parts, {"loss": Mean(total, 1), "grad_norm": Mean(norm, 1), "learning_rate": Max(rate)}])

    def _inputs(self, batch: TrainingBatch, old: Tensor | None, rows: Sequence[int]) -> LossInputs:
        graded, device = batch.graded, self.device
        logprobs, entropy = self.forward(graded, rows)
        width = logprobs.shape[1]

        def cut(values: Tensor) -> Tensor:
            return values[rows][:, :width].to(device)

        return LossInputs(
            logprobs=logprobs,
            entropy=entropy,
            old_logprobs=logprobs.detach() if old is None else cut(old),
            rollout_logprobs=cut(graded.rollout_logprobs),
            reference_logprobs=None if batch.reference_logprobs is None else cut(batch.reference_logprobs),
            advantages=cut(batch.advantages),
            loss_mask=cut(graded.loss_mask),
        )

    # -- weights ---------------------------------------------------------------------------------------------------------

    def weights(self, version: int) -> WeightUpdate:
        kind: Literal["full", "adapter"] = "full" if self.serve == "merged" else "adapter"
        parts = self._merged() if kind == "full" else self._adapter()
        tensors = {name: tensor.to(self.dtype) for name, tensor in parts}
        return weight_update(version, tensors, kind)

    @torch.no_grad()
    def _merged(self) -> Iterator[tuple[str, Tensor]]:
        """Name → tensor of the plain model, adapters added in."""
        if not isinstance(self.model, PeftModel):
            yield from ((name, p.detach()) for name, p in self.model.named_parameters())
            return
        base = self.model.get_base_model()
        for name, parameter in base.named_parameters():
            if ".lora_" in name:
                continue
            owner, _, leaf = name.rpartition(".base_layer.")
            layer = base.get_submodule(owner) if owner else None
            delta = layer.get_delta_weight("default") if isinstance(layer, LoraLayer) and leaf == "weight" else 0
            yield name.replace(".base_layer.", "."), parameter.detach() + delta

    @torch.no_grad()
    def _adapter(self) -> Iterator[tuple[str, Tensor]]:
        """The pairs A, B of every adapted module, the scaling folded into B."""
        for name, layer in self.model.get_base_model().named_modules():
            if isinstance(layer, LoraLayer):
                yield f"{name}.lora_A.weight", layer.lora_A["default"].weight.detach()
                yield f"{name}.lora_B.weight", layer.lora_B["default"].weight.detach() * layer.scaling["default"]

    def save(self, folder: Path) -> None:
        """`model/`: a plain checkpoint that `from_pretrained` loads, adapters merged; beside it what training goes on from."""
        plain = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        plain.save_pretrained(folder / "model", state_dict={name: t.contiguous().cpu() for name, t in self._merged()})
        self.tokenizer.save_pretrained(folder / "model")
        if isinstance(self.model, PeftModel):
            self.model.save_pretrained(folder / "adapter")
        state = {
            f"{name}/{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        state["updates"] = torch.tensor(self.updates)
        state["rng"] = torch.get_rng_state()
        if torch.cuda.is_available():
            state["rng_cuda"] = torch.cuda.get_rng_state()
        state |= {f"parameter/{name}": p.detach() for name, p in self.parameters.items()}
        save_file({key: value.contiguous() for key, value in state.items()}, folder / "learner.safetensors")

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        state = load_file(folder / "learner.safetensors")
        self.updates = int(state.pop("updates"))
        torch.set_rng_state(state.pop("rng"))
        if "rng_cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state.pop("rng_cuda"))
        for name, parameter in self.parameters.items():
            parameter.copy_(state[f"parameter/{name}"])
            if f"{name}/step" in state:
                moments = {key: state[f"{name}/{key}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": state[f"{name}/step"], **moments}  # AdamW counts on the CPU


def learning_rate(settings: Optimizer, update: int, total: int) -> float:
    """The rate of optimiser step number `update` (from 0): linear warm-up, then constant or a cosine to zero at `total`."""
    if update < settings.warmup_steps:
        return settings.learning_rate * (update + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (update - settings.warmup_steps) / max(1, total - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
