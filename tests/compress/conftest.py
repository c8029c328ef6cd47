"""A tiny model, rows to look at, and a way to do methods to it. For mixtures of modules: a small Llama with large weights,
mixtures made from it, and a router that says what a test wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from compress.architectures.mixture_of_modules import MixtureOfModules
from compress.calibration import Calibration
from compress.compressed import CompressedModel
from compress.method import fit
from compress.mixture.block import Block
from compress.mixture.from_llama import from_llama
from rlcore import plugins
from rlcore.models import ModelSpec

Done = Callable[..., CompressedModel]


@pytest.fixture(scope="session")
def calibration(tiny_spec: ModelSpec) -> Calibration:
    dense = tiny_spec.load().eval()
    rows = torch.randint(3, 50, (8, 24), generator=torch.Generator().manual_seed(0))
    return Calibration(rows, lambda: dense, rows_at_once=4)


@pytest.fixture
def done(tiny_spec: ModelSpec, calibration: Calibration) -> Done:
    """`done(("rtn", {"bits": 4}), …)`: the tiny model after these methods."""

    def do(*methods: tuple[str, Mapping[str, Any]], dtype: torch.dtype = torch.float32) -> CompressedModel:
        made = [(name, options, plugins.bind("compress", name, options)()) for name, options in methods]
        return fit(CompressedModel(tiny_spec.load().eval(), dtype), made, calibration, ["lm_head"])

    return do


SHARED_OUT = dict(blocks=2, bottom=1, top=1)  # 8 layers: 1 + 2 · (2 modules + 1 anchor) + 1


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)  # so that it matters which norm goes with which module
    return model


@pytest.fixture
def make(llama: LlamaForCausalLM) -> Callable[..., MixtureOfModules]:
    """A mixture from the Llama, by settings; its routers are the same every time."""

    def made(rounds: int = 3, **settings: object) -> MixtureOfModules:
        torch.manual_seed(1)
        return from_llama(llama, **{**SHARED_OUT, "rounds": rounds, "router_dim": 16, **settings}).eval()

    return made


class Forced(nn.Module):
    """In round r the tokens get outcomes[r]: one for all, or (rows · tokens,) one each."""

    def __init__(self, outcomes: Sequence[int | Tensor], count: int) -> None:
        super().__init__()
        self.outcomes, self.count = outcomes, count

    def forward(self, hidden: Tensor, state: int | None) -> tuple[Tensor, int]:
        number = state or 0
        chosen = torch.as_tensor(self.outcomes[number]).expand(len(hidden))
        logits = torch.full((len(hidden), self.count), -1e4)
        return logits.scatter(1, chosen[:, None], 0.0), number + 1


def blocks_of(model: MixtureOfModules) -> list[Block]:
    return [layer for layer in model.model.layers if isinstance(layer, Block)]


def force(model: MixtureOfModules, attention: Sequence[int | Tensor], feed_forward: Sequence[int | Tensor]) -> MixtureOfModules:
    for block in blocks_of(model):
        block.attention_router = Forced(attention, len(block.attention) + 1)
        block.feed_forward_router = Forced(feed_forward, len(block.feed_forward) + 1)
    return model
