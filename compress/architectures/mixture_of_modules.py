"""Mixture-of-Modules (Gong et al. 2024, arXiv 2407.06677): a language model whose tokens choose their own path through modules.

The layers of a stretch of a Llama become a block of N_A attention modules and N_F feed-forward modules, each with its norm. In
each of a block's rounds every token chooses K attention modules, then K feed-forward modules, or SKIP in the place of one
(`compress.mixture.router` has the routers, `compress.mixture.block` the rounds). Around the blocks stand `bottom` and `top`
vanilla layers, and one, the anchor, after each block. `compress.mixture.from_llama` makes one from a trained Llama.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from compress.mixture.block import Block
from compress.mixture.router import ROUTERS, Round, blocks_balance
from rlcore.errors import UserError, nearest

LEAST = dict(bottom=0, top=0, blocks=1, rounds=1, attention_modules=1, ffn_modules=1, router_dim=1, router_top_k=1)


class MixtureOfModulesConfig(LlamaConfig):
    """A Llama's settings and these; the defaults are those of the paper's code, as far as they do not depend on the size.

    `num_hidden_layers` is what is run, and has a key-value cache: a vanilla layer or a round each. It follows from the rest.
    Raises UserError for settings that cannot be.

    With K = 1 a token can skip a round's attention, or its feed-forward module, and its router learns from the likelihood only
    without `renormalise`; with K > 1 SKIP takes the place of one module, and no token skips all. A GRU router of 256 is small
    beside modules of width 768, and larger than modules of width 128.
    """

    model_type = "mixture_of_modules"
    base_model_tp_plan = None
    base_model_pp_plan = None

    num_hidden_layers: int = 0
    bottom: int = 1  # vanilla layers before the blocks
    blocks: int = 4
    rounds: int = 4  # of each block
    anchor: bool = True  # a vanilla layer after each block
    top: int = 2  # vanilla layers after the blocks
    attention_modules: int = 4  # N_A, of each block
    ffn_modules: int = 4  # N_F
    router: str = "gru"  # or "naive"
    router_dim: int = 256
    router_top_k: int = 2  # K
    router_tau: float = 0.2  # τ, the temperature
    renormalise: bool = True  # the weights of the chosen sum to 1
    weighted_qkv: bool = False
    load_balance_weight: float = 0.01
    load_balance_per_round: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"a mixture of modules with {name} {getattr(self, name)}: it is {least} at least")
        if self.router not in ROUTERS:
            raise UserError(f"there is no router {self.router!r}{nearest(self.router, list(ROUTERS))}")
        if self.router_tau <= 0:
            raise UserError(f"router_tau {self.router_tau} is a temperature: it must be above 0")
        if self.router_top_k > (most := min(self.attention_modules, self.ffn_modules) + 1):
            raise UserError(f"router_top_k {self.router_top_k} of {most} outcomes, SKIP among them")
        run = self.bottom + self.blocks * (self.rounds + self.anchor) + self.top
        if self.num_hidden_layers not in (0, run):
            raise UserError(f"num_hidden_layers {self.num_hidden_layers} contradicts the layers and rounds, which are {run}")
        self.num_hidden_layers = run
        super().__post_init__(**kwargs)


class MixtureOfModulesPreTrained(PreTrainedModel):
    config: MixtureOfModulesConfig
    config_class = MixtureOfModulesConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.GRUCell):
            for name, parameter in module.named_parameters():
                if "bias" in name:
                    init.zeros_(parameter)
                else:
                    init.normal_(parameter, std=self.config.initializer_range)


@dataclass
class Decoded(BaseModelOutputWithPast):
    routing: tuple[tuple[Round, ...], ...] | None = None  # by block and round


@dataclass
class Predicted(CausalLMOutputWithPast):
    """`loss` = `cross_entropy` + load_balance_weight · `load_balance`, where there are labels."""

    cross_entropy: Tensor | None = None  # scalar, nats
    load_balance: Tensor | None = None  # scalar, 1 for uniform routing
    routing: tuple[tuple[Round, ...], ...] | None = None


class MixtureOfModulesModel(MixtureOfModulesPreTrained):
    """The model without its head. Its layers are vanilla layers and blocks, in the order in which they run."""

    def __init__(self, config: MixtureOfModulesConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList()
        vanilla, block = [LlamaDecoderLayer], [Block, LlamaDecoderLayer] if config.anchor else [Block]
        cached = 0
        for kind in vanilla * config.bottom + block * config.blocks + vanilla * config.top:
            self.layers.append(kind(config, cached))
            cached += config.rounds if kind is Block else 1
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Decoded:
        """`input_ids` (rows, tokens) or `inputs_embeds` (rows, tokens, width); the rest as in transformers' Llama."""
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(hidden.shape[1], device=hidden.device) + past)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            allow_is_causal_skip=self.config.router_top_k > 1,
        )
        shared = {
            "attention_mask": mask,
            "position_embeddings": self.rotary_emb(hidden, position_ids=position_ids),
            "past_key_values": past_key_values,
        }
        routing = []
        for layer in self.layers:
            if isinstance(layer, Block):
                hidden, rounds = layer(hidden, **shared, **kwargs)
                routing.append(rounds)
            else:
                hidden = layer(hidden, position_ids=position_ids, **shared, **kwargs)
        return Decoded(last_hidden_state=self.norm(hidden), past_key_values=past_key_values, routing=tuple(routing))


class MixtureOfModules(MixtureOfModulesPreTrained, GenerationMixin):
    """The causal language model."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MixtureOfModulesConfig) -> None:
        super().__init__(config)
        self.model = MixtureOfModulesModel(config)
        self.vocab_size = config.vocab_size
        self.loss_type = "ForCausalLM"
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Predicted:
        """As transformers' Llama, whose `hidden_states` and `attentions` there are not. With `labels` (rows, tokens; −100: not
        learned) there are the losses; tokens of which `attention_mask` (rows, tokens) is 0 do not count in the load-balancing
        one."""
        decoded = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache=use_cache, **kwargs
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(decoded.last_hidden_state[:, kept])
        output = Predicted(logits=logits, past_key_values=decoded.past_key_values, routing=decoded.routing)
        if labels is not None:
            counted = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
            output.cross_entropy = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **kwargs)
            output.load_balance = blocks_balance(decoded.routing, counted, per_round=self.config.load_balance_per_round)
            output.loss = output.cross_entropy + self.config.load_balance_weight * output.load_balance
        return output


AutoConfig.register(MixtureOfModulesConfig.model_type, MixtureOfModulesConfig)
AutoModel.register(MixtureOfModulesConfig, MixtureOfModulesModel)
AutoModelForCausalLM.register(MixtureOfModulesConfig, MixtureOfModules)
