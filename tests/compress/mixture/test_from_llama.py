"""The start of the second phase: copies in the right places, and the Llama again where every round takes its own module."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from compress.architectures.mixture_of_modules import MixtureOfModules
from compress.mixture.from_llama import from_llama
from rlcore.errors import UserError
from tests.compress.conftest import SHARED_OUT, blocks_of, force


@pytest.mark.parametrize("top_k", [1, 2])
def test_with_module_r_alone_in_round_r_it_is_the_llama(
    llama: LlamaForCausalLM, make: Callable[..., MixtureOfModules], top_k: int
) -> None:
    """With K = 2 the second outcome has a weight of 0, but its queries, keys and values are mixed in unless weighted."""
    mixture = force(make(rounds=2, router_top_k=top_k, weighted_qkv=top_k > 1), [0, 1], [0, 1])
    ids = torch.randint(3, 40, (2, 12), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(mixture(ids).logits, llama(ids).logits, atol=1e-6, rtol=1e-6)


def test_in_another_order_it_is_not(llama: LlamaForCausalLM, make: Callable[..., MixtureOfModules]) -> None:
    mixture = force(make(rounds=2, router_top_k=1), [1, 0], [0, 1])
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        assert (mixture(ids).logits - llama(ids).logits).abs().max() > 0.1


def test_every_weight_is_a_copy(llama: LlamaForCausalLM, make: Callable[..., MixtureOfModules]) -> None:
    mixture, layers = make(), llama.model.layers
    for number, block in enumerate(blocks_of(mixture)):
        for i in range(2):
            source = layers[1 + 3 * number + i]
            assert torch.equal(block.attention[i].norm.weight, source.input_layernorm.weight)
            assert torch.equal(block.attention[i].k_proj.weight, source.self_attn.k_proj.weight)
            assert torch.equal(block.feed_forward[i].norm.weight, source.post_attention_layernorm.weight)
            assert torch.equal(block.feed_forward[i].mlp.down_proj.weight, source.mlp.down_proj.weight)
    vanilla = [layer for layer in mixture.model.layers if layer not in blocks_of(mixture)]
    for layer, source in zip(vanilla, [layers[0], layers[3], layers[6], layers[7]], strict=True):
        assert torch.equal(layer.self_attn.q_proj.weight, source.self_attn.q_proj.weight)
    assert torch.equal(mixture.lm_head.weight, llama.lm_head.weight)
    before = llama.lm_head.weight[0, 0].item()
    with torch.no_grad():
        mixture.lm_head.weight += 1
    assert llama.lm_head.weight[0, 0].item() == before


def test_tied_embeddings_stay_tied(llama: LlamaForCausalLM) -> None:
    llama.config.tie_word_embeddings = True
    llama.lm_head.weight = llama.model.embed_tokens.weight
    mixture = from_llama(llama, **SHARED_OUT, rounds=2)
    assert mixture.lm_head.weight is mixture.model.embed_tokens.weight


def test_the_dtype_is_the_models(llama: LlamaForCausalLM) -> None:
    mixture = from_llama(llama.to(torch.bfloat16), **SHARED_OUT, rounds=2, router_top_k=1)
    assert mixture.dtype == torch.bfloat16
    ids = torch.arange(3, 15)[None]
    output = mixture(ids, labels=ids)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixture.parameters())


def test_layers_that_cannot_be_shared_out_are_refused(llama: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match="8 layers do not make 1 at the bottom, 2 equal blocks, an anchor each and 2 on top"):
        from_llama(llama, blocks=2, rounds=2, bottom=1, top=2)
    with pytest.raises(UserError, match="8 layers do not make 3 at the bottom, 4 equal blocks and 0 on top"):
        from_llama(llama, blocks=4, rounds=2, bottom=3, top=0, anchor=False)


def test_a_setting_that_there_is_not_and_another_kind_of_model_are_refused(llama: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match="no setting 'router_dims'; did you mean 'router_dim'"):
        from_llama(llama, **SHARED_OUT, rounds=2, router_dims=3)
    tiny = Qwen2Config(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(UserError, match="made from a Llama, not from a model of type 'qwen2'"):
        from_llama(Qwen2ForCausalLM(tiny), blocks=1, rounds=1, bottom=0, top=0)
