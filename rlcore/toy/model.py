"""Tiny Llama models with a tokenizer of their own, built in code: `scratch:NAME` in a recipe's `model`.

The tokenizer has one token per character of the toy world, and one for each of its words, so that a digit is always one token
and a step is a handful. There is no chat template: a toy is a base model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlcore.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SIZES: dict[str, dict[str, int]] = {  # named by their parameters; heads are 32 wide, the least that vLLM takes on a CPU
    "llama-100k": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "llama-500k": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4},
    "llama-1m": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    "llama-3m": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8},
}
SPECIAL = ("<pad>", "<eos>", "<unk>")
WORDS = ("#### ", "check ", "wait")
CHARACTERS = "0123456789+-*/=()?.,:; \nabcdefghijklmnopqrstuvwxyz"
CONTEXT = 512


def build_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *WORDS, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(WORDS) + r"|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def build(size: str, seed: int, folder: Path) -> None:
    """Write a randomly initialised model of a size in SIZES, with its tokenizer, as a plain checkpoint."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if size not in SIZES:
        raise UserError(f"there is no scratch:{size}{nearest(size, list(SIZES))}")
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        **SIZES[size],
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,  # tied, a toy takes several times as long to learn to add
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
