"""Where the second phase of training a Mixture-of-Modules begins: the layers of a trained Llama as modules.

The paper trains a vanilla model first and then takes its layers apart, since modules that are trained from random weights
become alike (Gong et al. 2024, arXiv 2407.06677).
"""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

from transformers import LlamaForCausalLM

from compress.architectures.mixture_of_modules import MixtureOfModules, MixtureOfModulesConfig
from compress.mixture.block import Block
from rlcore.errors import UserError, nearest


def from_llama(
    model: LlamaForCausalLM, *, blocks: int, rounds: int, bottom: int, top: int, anchor: bool = True, **settings: Any
) -> MixtureOfModules:
    """The paper's second phase begins here: a trained Llama whose layers, with their norms, become modules.

    The layers are shared out in order: `bottom` vanilla ones; for each block as many modules as there are, of both kinds,
    then, with `anchor`, one vanilla layer; `top` vanilla ones. `settings`: others of MixtureOfModulesConfig. Everything is a
    copy, in the model's dtype and on its device; the routers are drawn from torch's generator. Raises UserError for
    a model of another kind, and where the layers cannot be shared out.
    """
    if model.config.model_type != "llama":
        raise UserError(f"a mixture of modules is made from a Llama, not from a model of type {model.config.model_type!r}")
    layers = model.config.num_hidden_layers
    modules, left = divmod(layers - bottom - top - blocks * anchor, max(blocks, 1))
    if left or modules < 1:
        anchors = ", an anchor each" if anchor else ""
        raise UserError(f"{layers} layers do not make {bottom} at the bottom, {blocks} equal blocks{anchors} and {top} on top")
    known = {field.name for field in fields(MixtureOfModulesConfig)}
    for name in settings:
        if name not in known:
            raise UserError(f"a mixture of modules has no setting {name!r}{nearest(name, sorted(known))}")
    arranged = dict(blocks=blocks, rounds=rounds, bottom=bottom, top=top, anchor=anchor)
    inherited = {
        k: v for k, v in model.config.to_dict().items() if k not in ("model_type", "architectures", "num_hidden_layers")
    }
    config = MixtureOfModulesConfig(**inherited | settings | arranged, attention_modules=modules, ffn_modules=modules)
    made = MixtureOfModules(config).to(model.device, model.dtype)
    _copy(model, made)
    made.generation_config = copy.deepcopy(model.generation_config)
    return made


def _copy(model: LlamaForCausalLM, made: MixtureOfModules) -> None:
    """Every weight of the model into what is made of it."""
    for name in ("embed_tokens", "norm"):
        getattr(made.model, name).load_state_dict(getattr(model.model, name).state_dict())
    made.lm_head.load_state_dict(model.lm_head.state_dict())
    sources = iter(model.model.layers)
    for layer in made.model.layers:
        if not isinstance(layer, Block):
            layer.load_state_dict(next(sources).state_dict())
            continue
        for attention, feed_forward in zip(layer.attention, layer.feed_forward, strict=True):
            source = next(sources)
            attention.norm.load_state_dict(source.input_layernorm.state_dict())
            for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
                getattr(attention, projection).load_state_dict(getattr(source.self_attn, projection).state_dict())
            feed_forward.norm.load_state_dict(source.post_attention_layernorm.state_dict())
            feed_forward.mlp.load_state_dict(source.mlp.state_dict())
