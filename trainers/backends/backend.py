"""What the learner asks of whatever holds its parameters, gradients and optimiser state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from rlcore.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter, of its shape, beside `step`, one number
Moments = dict[str, Tensor]  # both, by these names


class Backend(Protocol):
    """Made from (module, optimiser settings). All ranks make every call together; parameters and moments are float32."""

    module: Callable[..., tuple[Tensor, Tensor]]  # what it was made from, or what wraps that

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the loss's gradient to that of the step; `last` of the step's."""

    def step(self, learning_rate: float) -> float:
        """Clip the gradients, summed over the ranks, and let the optimiser go a step; returns their norm before clipping.
        Raises UserError where that is not finite."""

    def whole(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        """Within it these parameters, whole, are on every rank; to be read only."""

    def moments(self, parameter: nn.Parameter) -> Moments:
        """The optimiser's state of a trained parameter, whole, on every rank; empty before the first step."""

    def restore(self, parameter: nn.Parameter, value: Tensor, moments: Moments) -> None:
        """Set a trained parameter and, if there are any, its moments."""


def at_home(parameter: nn.Parameter, moments: Moments) -> Moments:
    """As AdamW keeps them: on the parameter's device, but for the `step`, which it counts on the CPU."""
    return {"step": moments["step"], **{name: moments[name].to(parameter.device) for name in MOMENTS}}


def refuse_infinite(norm: float) -> None:
    if not math.isfinite(norm):
        raise UserError(
            f"the gradient's norm is {norm}: look at a policy loss of your own; else lower optimizer.learning_rate, or use "
            "dtype float32"
        )


def is_spread(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 has cut the parameter up, so that it is whole for moments only."""
    return hasattr(parameter, "ds_shape")


def shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the whole parameter, wherever its parts are."""
    return tuple(parameter.ds_shape if is_spread(parameter) else parameter.shape)
