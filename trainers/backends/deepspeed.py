"""DeepSpeed ZeRO (Rajbhandari et al. 2020): ranks that share the optimiser's state (stage 1), the gradients too (2), and the
parameters too (3); at stage 0 each holds everything. `torch.distributed` joins the ranks before this is made."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from rlcore.recipe.schema import Optimizer
from trainers.backends.backend import MOMENTS, Moments, at_home, refuse_infinite, shape

# Sums of small tensors on CPUs by way of shared memory: a C++ extension that is compiled at the first start, under a lock which
# a process that is killed meanwhile leaves behind for ever. Gloo does as well.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class DeepSpeed:
    """Keeps the contract of `trainers.backends.backend.Backend`."""

    def __init__(self, module: nn.Module, settings: Optimizer, *, zero: int, offload: bool) -> None:
        self.zero, self.world = zero, dist.get_world_size()
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(self.parameters, betas=settings.betas, weight_decay=settings.weight_decay)
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed asks; what a micro-batch is, the learner decides
            "gradient_accumulation_steps": 1,
            "gradient_clipping": settings.max_grad_norm,
            "zero_optimization": {"stage": zero} | ({"offload_optimizer": {"device": "cpu"}} if offload else {}),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 1 << 60,
        }
        deepspeed.init_distributed(auto_mpi_discovery=False)
        self.engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        self.module = self.engine

    def backward(self, loss: Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.world)  # DeepSpeed averages over the ranks, and the losses are parts of one sum

    def step(self, learning_rate: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if not self.zero:  # DeepSpeed tells no norm then, and goes the step whatever it is
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]).item()
            refuse_infinite(norm)
            self.engine.step()
            return norm
        self.engine.step()  # not gone where the norm is not finite
        norm = float(self.engine.get_global_grad_norm())
        refuse_infinite(norm)
        return norm

    def whole(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        if self.zero < 3:
            return nullcontext()
        gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(list(parameters))
        return gathered

    def moments(self, parameter: nn.Parameter) -> Moments:
        if not self.zero:
            return dict(self.engine.optimizer.state[parameter])
        steps = [state["step"] for state in self._base.state.values() if "step" in state]
        if not steps:
            return {}
        whole = {name: safe_get_full_optimizer_state(parameter, name).view(shape(parameter)) for name in MOMENTS}
        return whole | {"step": steps[0].clone()}

    @torch.no_grad()
    def restore(self, parameter: nn.Parameter, value: Tensor, moments: Moments) -> None:
        value = value.to(self.engine.device)
        if self.zero == 3:
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)
            safe_set_local_fp32_param(parameter, self._share(parameter, value))
        else:
            parameter.copy_(value)
            if self.zero:
                safe_set_full_fp32_param(parameter, value)
        if not moments:
            return
        if not self.zero:
            self.engine.optimizer.state[parameter] = at_home(parameter, moments)
            return
        self._make_states(moments["step"])
        for name in MOMENTS:
            if self.zero == 3:
                safe_set_local_optimizer_state(parameter, self._share(parameter, moments[name].to(value.device)), name)
            else:
                safe_set_full_optimizer_state(parameter, moments[name].to(value.device), name)

    @property
    def _base(self) -> torch.optim.AdamW:
        """The optimiser that ZeRO wraps: of flat tensors, each this rank's share of many parameters."""
        return self.engine.optimizer.optimizer

    def _make_states(self, step: Tensor) -> None:
        """Moments for the flat tensors, which AdamW makes at its first step only; `step` is how many it has done."""
        zero = self.engine.optimizer
        for flat in zero.fp32_partitioned_groups_flat if self.zero == 3 else zero.single_partition_of_fp32_groups:
            if not self._base.state[flat]:
                self._base.state[flat] = {name: torch.zeros_like(flat) for name in MOMENTS}
            self._base.state[flat]["step"] = step.clone()
        if self.zero < 3:
            zero._lazy_init_hp_params_optimizer_state()

    def _share(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """This rank's part of a tensor that ZeRO-3 has cut into equal ones, the last filled up with zeros."""
        size = safe_get_local_fp32_param(parameter).numel()
        padded = torch.zeros(size * self.world, device=value.device)
        padded[: value.numel()] = value.flatten()
        return padded.view(self.world, size)[dist.get_rank()]
