"""Plain torch: one process that holds everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from rlcore.recipe.schema import Optimizer
from trainers.backends.backend import Moments, at_home, refuse_infinite


class Torch:
    """Keeps the contract of `trainers.backends.backend.Backend`."""

    def __init__(self, module: nn.Module, settings: Optimizer) -> None:
        self.module: Callable[..., tuple[Tensor, Tensor]] = module
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.max_grad_norm = settings.max_grad_norm
        by_rate: dict[float, list[nn.Parameter]] = {}  # a parameter may have a `rate`: its own, in multiples of the others'
        for parameter in self.parameters:
            by_rate.setdefault(getattr(parameter, "rate", 1.0), []).append(parameter)
        groups = [{"params": parameters, "rate": rate} for rate, parameters in by_rate.items()]
        self.optimizer = torch.optim.AdamW(groups, betas=settings.betas, weight_decay=settings.weight_decay)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm).item()
        refuse_infinite(norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def whole(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        return nullcontext()

    def moments(self, parameter: nn.Parameter) -> Moments:
        return dict(self.optimizer.state[parameter])

    @torch.no_grad()
    def restore(self, parameter: nn.Parameter, value: Tensor, moments: Moments) -> None:
        parameter.copy_(value)
        if moments:
            self.optimizer.state[parameter] = at_home(parameter, moments)
