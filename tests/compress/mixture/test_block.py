"""What a round puts together, and that the absent are not there."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import eager_attention_forward

from compress.architectures.mixture_of_modules import MixtureOfModules
from compress.mixture.block import gathered, marked, without_absent
from rollout.attention import grouped_query_attention
from tests.compress.conftest import force

ATTENTIONS = [sdpa_attention_forward, eager_attention_forward, grouped_query_attention]


def test_each_module_is_computed_for_its_tokens_only() -> None:
    torch.manual_seed(0)
    modules = [nn.Linear(4, 3) for _ in range(3)]
    hidden, weights = torch.randn(1, 5, 4), torch.rand(1, 5, 2)
    chosen = torch.tensor([[[0, 3], [1, 0], [3, 1], [0, 1], [3, 1]]])  # 3 is SKIP, and 2 nobody's
    seen = []
    for module in modules:
        module.register_forward_hook(lambda m, given, out: seen.append(len(given[0])))
    got = gathered(modules, hidden, chosen, weights, 3)
    assert seen == [3, 4, 0]
    for t in range(5):
        parts = [weights[0, t, k] * modules[e](hidden[0, t]) for k, e in enumerate(chosen[0, t].tolist()) if e < 3]
        torch.testing.assert_close(got[0, t], torch.stack(parts).sum(0))
    got.sum().backward()
    assert modules[2].weight.grad is not None
    assert not modules[2].weight.grad.any()


def attended(attention: Callable, queries: slice, absent: Tensor, key: Tensor, value: Tensor, query: Tensor) -> Tensor:
    """Of the queries of a sequence (one alone is decoding), with the mask that the attention is usually given."""
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True, training=False)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None, queries]
    if attention is eager_attention_forward:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    mask = without_absent(mask, absent[:, queries], value)
    output, _ = attention(module, query[:, :, queries], key, value, mask, scaling=0.5)
    return output


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("queries", [slice(0, 6), slice(5, 6)], ids=["prefill", "decoding"])
def test_no_key_or_value_of_an_absent_token_is_read(attention: Callable, queries: slice) -> None:
    """Exactly none: other keys and values in their places leave every bit of the present tokens' outputs; and these are what
    the sequence without the absent gives."""
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    absent = torch.tensor([[True, False, True, False, False, False]])
    there = ~absent[0]
    outputs = []
    for content in (0.0, 7.0):
        k = key.masked_fill(absent[:, None, :, None], content)
        v = marked(value.masked_fill(absent[:, None, :, None], content), absent)
        outputs.append(attended(attention, queries, absent, k, v, query))
    assert torch.isfinite(outputs[0]).all()
    shown = there[queries]
    assert torch.equal(outputs[0][:, shown], outputs[1][:, shown])
    alone, _ = sdpa_attention_forward(
        SimpleNamespace(num_key_value_groups=2, is_causal=True),
        query[:, :, there],
        key[:, :, there],
        value[:, :, there],
        None,
        scaling=0.5,
    )
    torch.testing.assert_close(outputs[0][:, shown], alone[:, -int(shown.sum()) :])


def test_without_a_mask_it_is_causal() -> None:
    value = marked(torch.zeros(1, 1, 4, 2), torch.tensor([[False, True, False, False]]))
    mask = without_absent(None, torch.tensor([[False, False]]), value)
    assert mask[0, 0].tolist() == [[True, False, True, False], [True, False, True, True]]


@pytest.mark.parametrize("absent", [True, False])
def test_what_a_token_is_that_skips_attention_changes_no_later_token(
    make: Callable[..., MixtureOfModules], absent: bool
) -> None:
    """Bit for bit, in a model of blocks alone; and it does change them where the token takes a module."""
    model = make(blocks=2, rounds=2, bottom=0, top=0, anchor=False, router_top_k=1)
    outcomes = torch.tensor([0, 1, 2, 3, 0, 1])
    outcomes[2] = model.config.attention_modules if absent else 1
    force(model, [outcomes, outcomes], [0, 1])
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    other = ids.clone()
    other[0, 2] = 30
    with torch.no_grad():
        first, second = model(ids).logits[0], model(other).logits[0]
    assert torch.equal(first[:2], second[:2])
    assert not torch.allclose(first[2], second[2])
    assert torch.equal(first[3:], second[3:]) == absent


def test_later_tokens_are_what_they_are_without_a_token_that_skips_attention(make: Callable[..., MixtureOfModules]) -> None:
    """With its position left empty."""
    model = make(blocks=2, rounds=2, bottom=0, top=0, anchor=False, router_top_k=1)
    outcomes = torch.tensor([model.config.attention_modules, 1, 2, model.config.attention_modules, 0, 1])
    kept = torch.tensor([1, 2, 4, 5])
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        whole = force(model, [outcomes, outcomes], [0, 1])(ids).logits
        without = force(model, [outcomes[kept]] * 2, [0, 1])(ids[:, kept], torch.ones(1, 4), kept[None]).logits
    torch.testing.assert_close(whole[:, kept], without, atol=1e-6, rtol=1e-6)


def test_a_token_that_skips_is_left_as_it_is(make: Callable[..., MixtureOfModules]) -> None:
    model = make(blocks=2, rounds=2, bottom=0, top=0, anchor=False, router_top_k=1)
    skip = model.config.attention_modules
    force(model, [skip, skip], [skip, skip])
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state
        assert torch.equal(hidden, model.model.norm(model.model.embed_tokens(ids)))


def test_values_are_weighted_where_that_is_asked(make: Callable[..., MixtureOfModules]) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        plain, weighted = (make(router_top_k=2, weighted_qkv=w)(ids).logits for w in (False, True))
        assert not torch.allclose(plain, weighted)
        alone = [make(router_top_k=1, weighted_qkv=w)(ids).logits for w in (False, True)]  # a weight of 1
        torch.testing.assert_close(*alone)
