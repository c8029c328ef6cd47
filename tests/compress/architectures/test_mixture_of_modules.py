"""The model as a model: its losses, its cache, our engine, and where it is saved and loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from compress.architectures.mixture_of_modules import MixtureOfModules, MixtureOfModulesConfig
from compress.mixture.block import Block
from compress.mixture.from_llama import from_llama
from compress.mixture.router import blocks_balance, usage
from rlcore import models
from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.types import Request, Sampling
from rollout.engines.transformers import Transformers
from tests.compress.conftest import blocks_of

KINDS = [dict(router_top_k=1), dict(router_top_k=2), dict(router_top_k=1, router="naive", renormalise=False)]
IDS = torch.randint(3, 40, (2, 12), generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=KINDS, ids=["top-1", "top-2", "naive"])
def mixture(request: pytest.FixtureRequest, make: Callable[..., MixtureOfModules]) -> MixtureOfModules:
    return make(**request.param)


@torch.no_grad()
def greedy(model: MixtureOfModules, prompt: list[int], length: int) -> list[int]:
    ids = list(prompt)
    for _ in range(length):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_top_1_skips_some_and_not_all(make: Callable[..., MixtureOfModules]) -> None:
    """What the tests of the cache with K = 1 rest on."""
    absent = usage(make(router_top_k=1)(IDS).routing).absent
    assert 0 < absent.min() < absent.max() < 1


def test_the_losses(mixture: MixtureOfModules) -> None:
    labels = IDS.clone()
    labels[:, :4] = -100
    padding = torch.ones_like(IDS)
    padding[1, 9:] = 0
    output = mixture(IDS, attention_mask=padding, labels=labels)
    expected = cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.cross_entropy, expected)
    balance = blocks_balance(output.routing, padding, per_round=False)
    assert not torch.isclose(balance, blocks_balance(output.routing, per_round=False), atol=1e-5)
    torch.testing.assert_close(output.load_balance, balance)
    torch.testing.assert_close(output.loss, expected + 0.01 * balance)


def reached(model: MixtureOfModules, loss: str) -> bool:
    """Whether a loss has a gradient for every router's head (True), or for none (False)."""
    model.zero_grad()
    model(IDS, labels=IDS)[loss].backward()
    routers = [r for b in blocks_of(model) for r in (b.attention_router, b.feed_forward_router)]
    found = {bool(router.head.weight.grad.abs().max() > 1e-8) for router in routers}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize(
    ("settings", "by_likelihood"),
    [(dict(router_top_k=2), True), (dict(router_top_k=1, renormalise=False), True), (dict(router_top_k=1), False)],
)
def test_what_teaches_the_routers(make: Callable[..., MixtureOfModules], settings: dict, by_likelihood: bool) -> None:
    """A renormalised weight of one outcome is 1 whatever the router says: the likelihood does not teach it."""
    model = make(**settings)
    assert reached(model, "load_balance")
    assert reached(model, "loss")
    assert reached(model, "cross_entropy") == by_likelihood


@torch.no_grad()
def test_with_and_without_a_cache_it_says_the_same(mixture: MixtureOfModules) -> None:
    whole = mixture(IDS, use_cache=False).logits
    output = mixture(IDS[:, :5], use_cache=True)
    parts = [output.logits]
    for t in range(5, 12):
        output = mixture(IDS[:, t : t + 1], past_key_values=output.past_key_values, use_cache=True)
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    assert len(output.past_key_values.layers) == mixture.config.num_hidden_layers == 1 + 2 * (3 + 1) + 1
    assert {layer.get_seq_length() for layer in output.past_key_values.layers} == {12}


def test_generate_is_greedy_decoding_for_each_row_of_a_padded_batch(mixture: MixtureOfModules) -> None:
    prompts = [[5, 6, 7, 8, 9], [10, 11]]
    ids = torch.tensor([prompts[0], [0, 0, 0, *prompts[1]]])
    mask = (ids != 0).long()
    for settings in ({}, {"cache_implementation": "static"}):
        got = mixture.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None, **settings)
        assert got[:, 5:].tolist() == [greedy(mixture, prompt, 8) for prompt in prompts]


def test_eager_attention_says_the_same(mixture: MixtureOfModules) -> None:
    with torch.no_grad():
        expected = mixture(IDS).logits
        mixture.set_attn_implementation("eager")
        torch.testing.assert_close(mixture(IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_the_engine_says_what_the_model_says_without_a_cache(
    mixture: MixtureOfModules, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Rows of several ages and lengths, which move between slots."""
    mixture.save_pretrained(tmp_path)
    engine = Transformers(ModelSpec(str(tmp_path), device="cpu"), tokenizer, [], batch_size=3)
    prompts, lengths = [(5, 6, 7, 8), (9, 10), (11, 12, 13), (14,), (5, 6, 7, 8)], [9, 3, 6, 8, 5]
    asked = [
        Request(f"p{i}", 0, i, prompt, Sampling(temperature=0.0, max_new_tokens=n))
        for i, (prompt, n) in enumerate(zip(prompts, lengths, strict=True))
    ]
    done = sorted(engine.generate(asked), key=lambda c: c.problem_id)
    for completion, prompt, n in zip(done, prompts, lengths, strict=True):
        assert list(completion.token_ids) == greedy(mixture, list(prompt), n)
    with torch.no_grad():
        logits = mixture(torch.tensor([[*prompts[0], *done[0].token_ids]])).logits[0, 3:-1].log_softmax(-1)
    expected = logits.gather(1, torch.tensor(done[0].token_ids)[:, None])[:, 0]
    got = torch.tensor(engine.logprobs([(prompts[0], done[0].token_ids)])[0])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_checkpointing_leaves_the_gradients(mixture: MixtureOfModules) -> None:
    mixture.train()
    gradients = []
    for _ in range(2):
        mixture.zero_grad()
        mixture(IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for p in mixture.parameters()])
        mixture.gradient_checkpointing_enable()
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_saved_and_loaded_it_is_the_same(mixture: MixtureOfModules, tmp_path: Path) -> None:
    mixture.save_pretrained(tmp_path)
    loaded = ModelSpec(str(tmp_path), device="cpu").load()
    assert type(loaded) is MixtureOfModules
    assert loaded.config.router == mixture.config.router
    assert all(torch.equal(p, loaded.get_parameter(n)) for n, p in mixture.named_parameters())
    with torch.no_grad():  # the memory's alignment decides the order of sums
        torch.testing.assert_close(loaded(IDS).logits, mixture(IDS).logits, atol=1e-6, rtol=1e-6)


def test_a_process_that_knows_only_the_folder_loads_it(
    make: Callable[..., MixtureOfModules], tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code = (
        "import sys; from rlcore import models; where = sys.argv[1]\n"
        "assert 'compress' not in sys.modules\n"
        "models.load_tokenizer(where)\n"
        "print(models.context(where), sorted(models.eos_ids(where)), models.parameters(where))\n"
        "print(models.without_weights(where).num_parameters())"
    )
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True).stdout
    assert told.split() == ["64", "[1]", str(model.model.num_parameters()), str(model.num_parameters())]


def test_a_tied_head_is_saved_once_and_loaded_tied(
    make: Callable[..., MixtureOfModules], tmp_path: Path, llama: LlamaForCausalLM
) -> None:
    llama.config.tie_word_embeddings = True
    llama.lm_head.weight = llama.model.embed_tokens.weight
    from_llama(llama, blocks=2, rounds=2, bottom=1, top=1, router_dim=8).save_pretrained(tmp_path)
    loaded = ModelSpec(str(tmp_path), device="cpu").load()
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_layers_run_in_order_and_have_a_cache_each(make: Callable[..., MixtureOfModules]) -> None:
    model = make(rounds=3)
    first = [layer.first if isinstance(layer, Block) else layer.self_attn.layer_idx for layer in model.model.layers]
    assert first == [0, 1, 4, 5, 8, 9]


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="a mixture of modules with rounds 0: it is 1 at least"):
        MixtureOfModulesConfig(rounds=0)
    with pytest.raises(UserError, match="router_top_k 6 of 5 outcomes, SKIP among them"):
        MixtureOfModulesConfig(router_top_k=6)
    with pytest.raises(UserError, match="num_hidden_layers 3 contradicts the layers and rounds, which are 23"):
        MixtureOfModulesConfig(num_hidden_layers=3)
    with pytest.raises(UserError, match="router_tau 0 is a temperature"):
        MixtureOfModulesConfig(router_tau=0)
    with pytest.raises(UserError, match="there is no router 'random'; known: gru, naive"):
        MixtureOfModulesConfig(router="random")


def test_a_folder_without_a_configuration_is_refused_as_before(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        models.without_weights(str(tmp_path))
