"""A model's prefill by a pattern, against the model itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlcore.errors import UserError
from rollout.prefill import blocks
from rollout.prefill.attention import prefill
from rollout.prefill.pattern import Choose
from rollout.prefill.patterns.dense import Dense

BLOCK, TOKENS = 16, 90
SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


class Near:
    """Reads a block and the one before; the fourth head everything."""

    block = BLOCK

    def begin(self, config: PretrainedConfig) -> Choose:
        return self._choose

    def _choose(self, layer: int, query: Tensor, key: Tensor) -> Tensor:
        whole = blocks.causal(blocks.count(query.shape[1], BLOCK))
        visible = whole.triu(-1).expand(len(query), -1, -1).clone()
        visible[3] = whole
        return visible


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return random_model(LlamaForCausalLM, LlamaConfig())


def random_model(kind: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    config.update(SHAPE)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model


@pytest.fixture(scope="module")
def ids() -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 40, (1, TOKENS))


@pytest.mark.parametrize(
    ("kind", "config"),
    [(LlamaForCausalLM, LlamaConfig), (Qwen2ForCausalLM, Qwen2Config), (Qwen3ForCausalLM, lambda: Qwen3Config(head_dim=16))],
)
@torch.inference_mode()
def test_all_blocks_are_the_model_itself_and_decoding_goes_on(
    kind: type[PreTrainedModel], config: Callable[[], PretrainedConfig], ids: Tensor
) -> None:
    model = random_model(kind, config())
    whole = model(ids).logits[0]
    read = prefill(model, ids[:, :80], Dense(block=BLOCK), [3, 50, -1])
    assert read.share == 1
    torch.testing.assert_close(read.logits, whole[[3, 50, 79]], atol=1e-5, rtol=1e-4)
    further = model(ids[:, 80:], past_key_values=read.cache).logits[0]
    torch.testing.assert_close(further, whole[80:], atol=1e-5, rtol=1e-4)


def test_a_pattern_is_the_model_under_its_mask(model: PreTrainedModel, ids: Tensor) -> None:
    everything = list(range(TOKENS))
    found = prefill(model, ids, Near(), everything)

    def masked(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, block: int) -> Tensor:
        mask = visible.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :TOKENS, :TOKENS].tril()
        return (query @ key.mT).masked_fill(~mask, -torch.inf).softmax(-1) @ value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "attend", masked)
        expected = prefill(model, ids, Near(), everything)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-4)
    near, whole = 6 + 5, 21  # of six rows
    assert found.share == (3 * near + whole) / (4 * whole)
    assert not torch.allclose(found.logits, model(ids).logits[0], atol=1e-2)


def test_nothing_sees_what_comes_later(model: PreTrainedModel, ids: Tensor) -> None:
    other = ids.clone()
    other[0, 60:] = (other[0, 60:] + 1) % 40
    found, changed = (prefill(model, each, Near(), list(range(TOKENS))).logits for each in (ids, other))
    assert torch.equal(found[:60], changed[:60])
    assert not torch.allclose(found[60:], changed[60:], atol=1e-3)


def test_the_model_attends_as_before_afterwards(model: PreTrainedModel, ids: Tensor) -> None:
    before = model.config._attn_implementation
    expected = model(ids).logits
    prefill(model, ids, Near())
    with pytest.raises(UserError, match="a sparse prefill reads one sequence, and was given 2"):
        prefill(model, ids.repeat(2, 1), Near())
    assert model.config._attn_implementation == before
    torch.testing.assert_close(model(ids).logits, expected)


def test_layers_that_see_a_window_are_refused(ids: Tensor) -> None:
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=32)).eval()
    before = model.config._attn_implementation
    with pytest.raises(UserError, match="layer 0 sees a window of 32 tokens: it cannot be read by a pattern"):
        prefill(model, ids, Dense(block=BLOCK))
    assert model.config._attn_implementation == before
    prefill(model, ids[:, :32], Dense(block=BLOCK))
