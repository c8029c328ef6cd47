"""Counts against hand counts, and against what torch counts while the model runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

from compress.architectures.mixture_of_modules import MixtureOfModules
from compress.counting import cache_bytes, flops, layers, parameters
from compress.mixture.router import usage
from tests.compress.conftest import force

# hidden 32, feed-forward 48, 4 heads and 2 groups of 8, vocabulary 40
PROJECTIONS = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32)
FEED_FORWARD = 2 * 3 * 32 * 48
HEAD = 2 * 32 * 40
ROUTER = 2 * (3 * 16 * 32 + 3 * 16 * 16 + 16 * 3)  # dim 16, 2 modules and SKIP
IDS = torch.randint(3, 40, (2, 12), generator=torch.Generator().manual_seed(2))


def products(context: float) -> float:
    return 2 * 2 * 32 * context


def test_a_llama_by_hand(llama: LlamaForCausalLM) -> None:
    assert flops(llama.config, 10) == 8 * (PROJECTIONS + products(10) + FEED_FORWARD) + HEAD
    assert cache_bytes(llama.config, torch.bfloat16) == 8 * 2 * 16 * 2
    assert parameters(llama.config) == llama.num_parameters()


def test_a_mixture_by_hand(make: Callable[..., MixtureOfModules]) -> None:
    """4 vanilla layers and 2 · 3 rounds. A third of the tokens skips attention in the first round, all in the last; half skip
    the feed-forward module in the second."""
    third = torch.tensor([2, 0, 1]).repeat(8)
    half = torch.tensor([2, 0]).repeat(12)
    model = force(make(rounds=3, router_top_k=1), [third, 0, 2], [0, half, 1])
    used = usage(model(IDS).routing)
    vanilla = 4 * (PROJECTIONS + products(10) + FEED_FORWARD) + HEAD
    attention = (2 / 3 + 1) * PROJECTIONS + ((2 / 3) ** 2 + 1) * products(10)
    expected = vanilla + 2 * (attention + 2.5 * FEED_FORWARD + 3 * 2 * ROUTER)
    assert flops(model.config, 10, used) == pytest.approx(expected)
    assert cache_bytes(model.config, torch.float32, used) == pytest.approx((4 + 2 * (2 / 3 + 1)) * 2 * 16 * 4)
    assert cache_bytes(model.config, torch.float32) == 10 * 2 * 16 * 4
    assert layers(model.config, used) == pytest.approx(4 + 2 * (2 / 3 + 1 + 2.5) / 2)
    assert parameters(model.config) == make(rounds=3).num_parameters()


def test_without_usage_nobody_skips(make: Callable[..., MixtureOfModules]) -> None:
    model = make(rounds=3, router_top_k=2)
    layer = 2 * PROJECTIONS + products(10) + 2 * FEED_FORWARD + 2 * ROUTER
    assert layers(model.config) == 4 + 6 * 2
    assert flops(model.config, 10) == 4 * (PROJECTIONS + products(10) + FEED_FORWARD) + HEAD + 6 * layer


@pytest.mark.parametrize("router", ["gru", "naive"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_it_is_what_torch_counts(make: Callable[..., MixtureOfModules], router: str, top_k: int) -> None:
    """Eager attention reads all 12 tokens for each, and the absent too: so the count is with nobody absent."""
    model = make(router=router, router_top_k=top_k)
    model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = model(IDS)
    used = usage(output.routing)
    everyone = replace(used, absent=torch.zeros_like(used.absent))
    assert counter.get_total_flops() == pytest.approx(IDS.numel() * flops(model.config, 12, everyone))


def test_the_llama_is_what_torch_counts(llama: LlamaForCausalLM) -> None:
    llama.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        llama(IDS)
    assert counter.get_total_flops() == IDS.numel() * flops(llama.config, 12)
