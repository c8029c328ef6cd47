"""Mixture-of-Modules, where its second phase begins (arXiv 2407.06677): a trained Llama's layers become modules, and each token
chooses its own path through them. Everything is copied but the routers, which are drawn: it has to be trained after, by
`job: sft`, whose loss is then the likelihood's and the routers' balance (`trainers.own_loss`).

What the options are is told by `compress.mixture.from_llama` and `compress.architectures.mixture_of_modules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from compress.architectures.mixture_of_modules import MixtureOfModulesConfig as Default
from compress.calibration import Calibration
from compress.compressed import CompressedModel
from compress.method import Method
from compress.mixture.from_llama import from_llama
from rlcore.errors import UserError
from rlcore.protocols import Progress, no_progress


class MixtureOfModules(Method):
    def __init__(
        self,
        *,
        blocks: PositiveInt,
        rounds: PositiveInt,
        bottom: NonNegativeInt,
        top: NonNegativeInt,
        anchor: bool = Default.anchor,
        router: str = Default.router,
        router_dim: PositiveInt = Default.router_dim,
        router_top_k: PositiveInt = Default.router_top_k,
        router_tau: PositiveFloat = Default.router_tau,
        renormalise: bool = Default.renormalise,
        weighted_qkv: bool = Default.weighted_qkv,
        load_balance_weight: Annotated[float, Field(ge=0)] = Default.load_balance_weight,
        load_balance_per_round: bool = Default.load_balance_per_round,
        seed: int = 0,
    ) -> None:
        self.seed = seed
        self.settings: dict[str, Any] = dict(
            blocks=blocks,
            rounds=rounds,
            bottom=bottom,
            top=top,
            anchor=anchor,
            router=router,
            router_dim=router_dim,
            router_top_k=router_top_k,
            router_tau=router_tau,
            renormalise=renormalise,
            weighted_qkv=weighted_qkv,
            load_balance_weight=load_balance_weight,
            load_balance_per_round=load_balance_per_round,
        )

    def work(self, matrices: int) -> int:
        return 1

    def fit(
        self, compressed: CompressedModel, calibration: Calibration, keep_dense: Sequence[str], progress: Progress = no_progress
    ) -> CompressedModel:
        """A model that is none of what was given; nothing of it is held. Raises UserError where something was."""
        if compressed.held:
            raise UserError("mixture_of_modules takes layers apart, and another method holds their matrices: put it first")
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            made = from_llama(compressed.model, **self.settings).eval()
        progress(1)
        return CompressedModel(made, compressed.dtype, history=compressed.history)
