"""The learner: one model, one optimiser, any objective. Keeps the contract of `rlcore.protocols.Learner`.

A step's batch is cut into mini-batches (one optimiser step each), and those into ranks' shares and micro-batches
(`trainers.scorer`, which it is one of). Denominators are made from the whole mini-batch, so that cut changes the order of sums
and nothing else. Where parameters and optimiser live, in one process or spread over the ranks, is the backend's business; every
rank calls every method, with the same arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.shira import ShiraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.codec import Codec
from compress.held import Held
from rlcore.batch import GradedBatch, TrainingBatch, rows
from rlcore.protocols import Kind, Superseded, WeightUpdate
from rlcore.recipe.schema import Optimizer, Update
from rlcore.run.metrics import Max, Mean, Metrics, merge
from rollout.sync import BUCKET_BYTES, codes_update, weight_update
from trainers.backends.backend import MOMENTS, Backend, is_spread, shape
from trainers.backends.torch import Torch
from trainers.logprobs import TokenLogprobs
from trainers.objective import Aggregation, LearnerObjective, Part, token_weights
from trainers.outliers import DELTA, base_of, compressed, delta_names, has_outliers, places
from trainers.scorer import Scorer, rank, world

Serve = Literal["merged", "adapter", "sparse"]
ADAPTERS = (".lora_", ".shira_", ".modules_to_save.")  # in the names of PEFT's parameters that learn
BESIDE = (".lora_", ".shira_", ".original_module.")  # in the names of those that the plain model does not have
KINDS: dict[Serve, Kind] = {"merged": "full", "adapter": "adapter", "sparse": "sparse"}


class Learner(Scorer):
    """`head` makes of the model what computes the objective's inputs."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        objective: LearnerObjective[Any],
        *,
        optimizer: Optimizer,
        update: Update,
        aggregate: Aggregation,
        constant_length: int,
        dtype: str,
        total_steps: int,
        serve: Serve = "merged",
        backend: Callable[[nn.Module, Optimizer], Backend] = Torch,
        bucket_bytes: int = BUCKET_BYTES,
        head: Callable[[nn.Module], nn.Module] = TokenLogprobs,
        codec: Codec | None = None,
    ) -> None:
        if update.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        module = head(model.train())
        beside = ((name, p) for name, p in module.named_parameters() if not name.startswith("model."))  # the head's own
        self.parameters = {name: p for name, p in (*model.named_parameters(), *beside) if p.requires_grad}
        self.backend = backend(module, optimizer)
        super().__init__(model, update, dtype, self.backend.module)
        self.tokenizer, self.objective, self.settings = tokenizer, objective, optimizer
        self.aggregate, self.constant_length = aggregate, constant_length
        self.total_updates = total_steps * update.steps
        self.updates = 0
        self.serve, self.bucket_bytes, self.codec = serve, bucket_bytes, codec
        self._held: dict[str, Held] = {}  # of the weights sent last, those that were compressed

    # -- learning --------------------------------------------------------------------------------------------------------

    def update(self, batch: TrainingBatch) -> Metrics:
        """`epochs` passes over the batch. An empty batch teaches nothing and changes nothing."""
        size = len(batch.advantages)
        if not size:
            return {}
        once = self.cut.steps == 1  # the old policy is the current one
        old = None if once or self.objective.bypasses else self.logprobs(batch.graded)
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
        prepared = self._prepare(batch, old, index)
        parts, total = [], 0.0
        cut = self.passes(batch.graded, index)
        for number, each in enumerate(cut, 1):
            loss = self.objective(
                self.objective.inputs(Part(batch, each.rows, old, prepared), self.forward(batch.graded, each))
            )
            width = loss.per_token.shape[1]
            value = (loss.per_token * weights[each.rows][:, :width].to(loss.per_token.device)).sum()
            if loss.normalised is not None:
                value = value + loss.normalised.sum()
            self.backend.backward(value if each.counts else 0 * value, last=number == len(cut))
            if each.counts:
                total += value.item()
                parts.append(loss.metrics)
        rate = learning_rate(self.settings, self.updates, self.total_updates)
        norm = self.backend.step(rate)
        self.updates += 1
        mean_loss = Mean(total * world(), 1)  # each rank reports its part of the sum, and the reports are averaged
        return merge([*parts, {"loss": mean_loss, "grad_norm": Mean(norm, 1), "learning_rate": Max(rate)}])

    def _prepare(self, batch: TrainingBatch, old: Tensor | None, index: Sequence[int]) -> dict[str, Tensor]:
        """What the objective has to know of the whole mini-batch, (B, T) each; 0 for completions outside of it."""

        def look() -> Any:
            outputs = self.outputs(batch.graded, index)
            return self.objective.inputs(Part(batch, index, old), tuple(output[index] for output in outputs))

        facts = self.objective.prepare(look, rows(batch.graded, index))
        size, where = batch.advantages.shape, torch.tensor(index)
        return {name: fact.new_zeros(size).index_copy(0, where, fact) for name, fact in facts.items()}

    # -- weights ---------------------------------------------------------------------------------------------------------

    def weights(self, version: int, compressed: bool = False) -> WeightUpdate:
        """Of the serving dtype, made a bucket at a time; but for what is compressed, at once and from float32."""
        self._held = self._encoded() if compressed else {}
        if compressed:
            others = {name: shape(parameter) for name, parameter, _ in self._plain() if name not in self._held}
            tensors = self._current(partial(self._merged, self.dtype, others))
            return codes_update(version, self._held, others, tensors, self.dtype, self.bucket_bytes)
        shapes, tensors = dict(self._sent_shapes()), self._current(self._sent)
        return weight_update(version, shapes, tensors, KINDS[self.serve], self.bucket_bytes, self.dtype)

    def _current(self, make: Callable[[], Iterator[tuple[str, Tensor]]]) -> Callable[[], Iterator[tuple[str, Tensor]]]:
        """What `make` makes, as long as the weights are those that there are now; then it raises Superseded."""
        made = self.updates

        def tensors() -> Iterator[tuple[str, Tensor]]:
            pairs = make()
            while self.updates == made:
                if (pair := next(pairs, None)) is None:
                    return
                yield pair
            raise Superseded

        return tensors

    def _encoded(self) -> dict[str, Held]:
        assert self.codec is not None  # who asks for compressed weights has given one
        return {name: self.codec.encode(name, weight) for name, weight in self._merged(torch.float32, self.codec.names)}

    def served_logprobs(self, batch: GradedBatch) -> Tensor:
        with self._serving():
            return self.logprobs(batch)

    @contextmanager
    def _serving(self) -> Iterator[None]:
        """Within it the model computes with the weights sent last, those that were compressed as they are decoded. Its own are
        put aside, and come back as they were."""
        if not self._held:
            yield
            return
        own = {parameter: parameter.data for _, parameter, _ in self._plain()}
        try:
            for name, parameter, layer in self._plain():
                if name in self._held:
                    parameter.data = self._held[name].decode().to(parameter.dtype)
                elif layer is not None:
                    parameter.data = parameter.detach() + layer.get_delta_weight("default")
            with self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext():
                yield
        finally:
            for parameter, data in own.items():
                parameter.data = data

    def _sent(self) -> Iterator[tuple[str, Tensor]]:
        return {"merged": partial(self._merged, self.dtype), "adapter": self._scaled, "sparse": self._sparse}[self.serve]()

    def _sent_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        if self.serve == "adapter":
            yield from ((name, shape(parameter)) for name, parameter, _ in self._adapter())
            return
        for name, parameter, layer in self._plain():
            if self.serve == "merged" or (layer is None and parameter.requires_grad):
                yield name, shape(parameter)
            elif isinstance(layer, ShiraLayer):
                yield from ((f"{name}.{part}", shape(layer.shira_weight[DELTA])) for part in ("places", "values"))

    def _plain(self) -> Iterator[tuple[str, nn.Parameter, LoraLayer | ShiraLayer | None]]:
        """The plain model's parameters by their names in it, each with the adapter that is to be added to it."""
        if not isinstance(self.model, PeftModel):
            yield from ((name, parameter, None) for name, parameter in self.model.named_parameters())
            return
        base = self.model.get_base_model()
        for name, parameter in base.named_parameters():
            if any(part in name for part in BESIDE):
                continue
            owner, _, leaf = name.rpartition(".base_layer.")
            layer = base.get_submodule(owner) if owner and leaf == "weight" else None
            plain = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
            yield plain, parameter, layer if isinstance(layer, LoraLayer | ShiraLayer) else None

    @torch.no_grad()
    def _merged(self, dtype: torch.dtype, names: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Name → tensor of the plain model, adapters added in; all, or those of these names."""
        for name, parameter, layer in self._plain():
            if names is not None and name not in names:
                continue
            with self.backend.whole([parameter, *_learned(layer)]):
                value = parameter.detach() if layer is None else parameter.detach() + layer.get_delta_weight("default")
                yield name, value.to(dtype, copy=is_spread(parameter))

    @torch.no_grad()
    def _sparse(self) -> Iterator[tuple[str, Tensor]]:
        """What is trained of the plain model: of each matrix the places and what stands there, and norms."""
        for name, parameter, layer in self._plain():
            if isinstance(layer, ShiraLayer):
                with self.backend.whole([parameter, *_learned(layer)]):
                    where, delta = places(layer), layer.shira_weight[DELTA]
                    yield f"{name}.places", where
                    yield f"{name}.values", (parameter.view(-1)[where.long()] + delta).to(self.dtype)
            elif parameter.requires_grad:
                with self.backend.whole([parameter]):
                    yield name, parameter.detach().to(self.dtype, copy=is_spread(parameter))

    def _adapter(self) -> Iterator[tuple[str, nn.Parameter, float]]:
        """The pairs A, B of every adapted module, and what each is scaled by."""
        for name, layer in self.model.get_base_model().named_modules():
            if isinstance(layer, LoraLayer):
                yield f"{name}.lora_A.weight", layer.lora_A["default"].weight, 1.0
                yield f"{name}.lora_B.weight", layer.lora_B["default"].weight, layer.scaling["default"]

    @torch.no_grad()
    def _scaled(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter, scaling in self._adapter():
            with self.backend.whole([parameter]):
                yield name, (parameter.detach() * scaling).to(self.dtype)

    def save(self, folder: Path) -> None:
        """`model/`: a plain checkpoint that `from_pretrained` loads, adapters merged; `adapter/`: those of LoRA;
        `compressed/`: a policy with outliers, as codes and Δ (`trainers.outliers`). Beside them what training goes on from, the
        same for any backend and number of ranks. Rank 0 writes; it holds a whole copy in memory."""
        merged = self._on_first((name, tensor) for name, tensor in self._merged(torch.float32))
        state = self._on_first(self._state())
        if rank():
            return
        plain = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        plain.save_pretrained(folder / "model", state_dict=merged)
        self.tokenizer.save_pretrained(folder / "model")
        if has_outliers(self.model):
            if plain.get_output_embeddings() is not None:  # a classifier's folder would not say what its head is
                deltas = {name: state[f"parameter/{key}"] for name, key in delta_names(self.model)}
                compressed(base_of(self.model), deltas, merged).save(folder / "compressed", self.tokenizer)
        elif isinstance(self.model, PeftModel):
            trained = {n: state[f"parameter/{n}"] for n, _ in self.model.named_parameters() if n in self.parameters}
            self.model.save_pretrained(folder / "adapter", state_dict=trained)
        save_file(state, folder / "learner.safetensors")

    def _on_first(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """All of them on rank 0's CPU, none on the others, which take part in making them."""
        return {name: tensor.contiguous().cpu() for name, tensor in tensors if not rank()}

    @torch.no_grad()
    def _state(self) -> Iterator[tuple[str, Tensor]]:
        yield "updates", torch.tensor(self.updates)
        yield "rng", torch.get_rng_state()
        if torch.cuda.is_available():
            yield "rng_cuda", torch.cuda.get_rng_state()
        for name, parameter in self.parameters.items():
            with self.backend.whole([parameter]):
                yield f"parameter/{name}", parameter.detach().clone()
            yield from ((f"{name}/{key}", value) for key, value in self.backend.moments(parameter).items())

    def load(self, folder: Path) -> None:
        state = load_file(folder / "learner.safetensors")
        self.updates = int(state.pop("updates"))
        torch.set_rng_state(state.pop("rng"))
        if "rng_cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state.pop("rng_cuda"))
        for name, parameter in self.parameters.items():
            moments = {key: state[f"{name}/{key}"] for key in ("step", *MOMENTS) if f"{name}/{key}" in state}
            self.backend.restore(parameter, state[f"parameter/{name}"], moments)


def _learned(layer: LoraLayer | ShiraLayer | None) -> list[nn.Parameter]:
    """The adapter's own parameters."""
    if layer is None:
        return []
    if isinstance(layer, ShiraLayer):
        return [layer.shira_weight[DELTA]]
    return [layer.lora_A["default"].weight, layer.lora_B["default"].weight]


def learning_rate(settings: Optimizer, update: int, total: int) -> float:
    """The rate of optimiser step number `update` (from 0): linear warm-up, then constant or a cosine to zero at `total`."""
    if update < settings.warmup_steps:
        return settings.learning_rate * (update + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (update - settings.warmup_steps) / max(1, total - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
