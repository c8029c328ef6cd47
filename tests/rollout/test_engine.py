"""The engine contract on the transformers engine, and what is checked when weights arrive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rlcore.batch import checksum
from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.protocols import WeightUpdate
from rlcore.types import Completion, Request, Sampling, seed_from
from rollout.engines.transformers import Transformers
from rollout.sync import SyncError

SETTINGS = [
    Sampling(temperature=0.5, max_new_tokens=24),
    Sampling(temperature=1.0, max_new_tokens=24),
    Sampling(temperature=1.3, max_new_tokens=24),
    Sampling(temperature=1.0, top_p=0.6, max_new_tokens=24),
]
PROMPTS = ["3+5-9=?\n", "1-2=?\n", "7+7+7+7+7=?\n"]


@pytest.fixture
def make_engine(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Transformers]:
    return lambda **options: Transformers(tiny_spec, tokenizer, [tokenizer.eos_token_id], **options)


@pytest.fixture
def engine(make_engine: Callable) -> Transformers:
    return make_engine()


def requests(engine: Transformers, sampling: Sampling, count: int = 12) -> list[Request]:
    return [
        Request(f"p{i % 3}", i, seed_from("test", i), tuple(engine.tokenizer(PROMPTS[i % 3]).input_ids), sampling)
        for i in range(count)
    ]


def recomputed(engine: Transformers, completion: Completion) -> torch.Tensor:
    """Log-probs of the sampled tokens by one plain forward pass, under the distribution sampled from."""
    ids = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
    logits = engine.model(ids).logits[0, len(completion.prompt_ids) - 1 : -1].float() / completion.sampling.temperature
    if completion.sampling.top_p < 1:
        p = logits.softmax(-1)
        above = torch.stack([(p * (p > p[:, v : v + 1])).sum(-1) for v in range(p.shape[1])], 1)
        logits = logits.masked_fill(above >= completion.sampling.top_p, -torch.inf)
    return logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_logprobs_are_those_of_the_distribution_sampled_from(engine: Transformers, sampling: Sampling) -> None:
    for completion in engine.generate(requests(engine, sampling)):
        torch.testing.assert_close(torch.tensor(completion.logprobs), recomputed(engine, completion), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_a_completion_does_not_depend_on_its_batch(make_engine: Callable, engine: Transformers, sampling: Sampling) -> None:
    """Together, in another order, a few at a time, and alone."""
    asked = requests(engine, sampling)
    together = engine.generate(asked)
    few = make_engine(batch_size=5)
    reordered = few.generate(asked[::-1])[::-1]
    alone = [few.generate([request])[0] for request in asked[:3]]
    assert [c.token_ids for c in reordered] == [c.token_ids for c in together]
    assert [c.token_ids for c in alone] == [c.token_ids for c in together[:3]]


def test_completions_end_at_eos_or_at_the_limit(engine: Transformers) -> None:
    eos = engine.tokenizer.eos_token_id
    for completion in engine.generate(requests(engine, Sampling(max_new_tokens=30), 40)):
        if completion.finish_reason == "stop":
            assert completion.token_ids[-1] == eos
            assert eos not in completion.token_ids[:-1]
        else:
            assert completion.finish_reason == "length"
            assert len(completion.token_ids) == 30
            assert completion.truncated


def test_stop_strings_end_a_completion_and_are_cut_from_its_text(engine: Transformers) -> None:
    stopped = [
        c
        for c in engine.generate(requests(engine, Sampling(max_new_tokens=60, stop=("7", "ab")), 24))
        if c.finish_reason == "stop" and c.token_ids[-1] != engine.tokenizer.eos_token_id
    ]
    assert stopped
    for completion in stopped:
        assert "7" not in completion.text
        assert engine.tokenizer.decode(completion.token_ids).endswith(("7", "ab"))


def test_greedy_is_deterministic_with_certainty(engine: Transformers) -> None:
    first, second = engine.generate(
        [replace(r, seed=seed) for seed, r in enumerate(requests(engine, Sampling(temperature=0, max_new_tokens=8), 1) * 2)]
    )
    assert first.token_ids == second.token_ids
    assert set(first.logprobs) == {0.0}


def test_interrupted_completions_go_on_as_if_nothing_had_happened(make_engine: Callable) -> None:
    engine = make_engine(batch_size=7)
    asked = requests(engine, Sampling(max_new_tokens=40))
    unbroken = engine.generate(asked)
    engine.submit(asked)
    done = engine.poll()
    partial = engine.interrupt()
    assert partial
    assert len(done) + len(partial) == len(asked)
    rest = engine.generate([Request(c.problem_id, c.sample, c.seed, c.prompt_ids, c.sampling, c.as_prefix()) for c in partial])
    by_seed = {c.seed: c for c in (*done, *rest)}
    for expected in unbroken:
        assert by_seed[expected.seed].token_ids == expected.token_ids
        torch.testing.assert_close(
            torch.tensor(by_seed[expected.seed].logprobs), torch.tensor(expected.logprobs), atol=1e-5, rtol=0
        )


def test_tokens_of_a_prefix_keep_their_own_version(engine: Transformers) -> None:
    [request] = requests(engine, Sampling(max_new_tokens=20), 1)
    engine.submit([request])
    engine._admit()
    [partial] = engine.interrupt()
    engine.sync(update_of(engine, version=3))
    [whole] = engine.generate([replace(request, prefix=partial.as_prefix())])
    assert whole.versions[: len(partial.token_ids)] == (0,) * len(partial.token_ids)
    assert set(whole.versions[len(partial.token_ids) :]) <= {3}


def test_a_prompt_longer_than_the_context_is_refused(engine: Transformers) -> None:
    request = Request("long", 0, 0, (5,) * 510, Sampling(max_new_tokens=10))
    with pytest.raises(UserError, match=r"long has 510 tokens; with max_new_tokens 10 .* context of 512"):
        engine.submit([request])


# -- new weights ---------------------------------------------------------------------------------------------------------


def update_of(engine: Transformers, version: int, shift: float = 0.0) -> WeightUpdate:
    tensors = {name: p.detach() + shift for name, p in engine.model.named_parameters()}
    return WeightUpdate(version, [tensors], {name: checksum(tensor) for name, tensor in tensors.items()})


def test_a_complete_update_is_served(engine: Transformers) -> None:
    before = {name: p.clone() for name, p in engine.model.named_parameters()}
    engine.sync(update_of(engine, 1, shift=0.5))
    assert engine.version == 1
    for name, parameter in engine.model.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.5)


def partial_(update: WeightUpdate) -> WeightUpdate:
    [tensors] = update.buckets
    return replace(update, buckets=[dict(list(tensors.items())[:-1])])


def flipped(update: WeightUpdate) -> WeightUpdate:
    [tensors] = update.buckets
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    tensors["model.norm.weight"].view(torch.int32)[3] ^= 1
    return replace(update, buckets=[tensors])


def exchanged(update: WeightUpdate) -> WeightUpdate:
    [tensors] = update.buckets
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    weight = tensors["model.embed_tokens.weight"]
    weight[[0, 1]] = weight[[1, 0]]
    return replace(update, buckets=[tensors])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (partial_, "is partial: 1 tensors never came"),
        (flipped, "'model.norm.weight' arrived corrupted"),
        (exchanged, "'model.embed_tokens.weight' arrived corrupted"),
        (lambda u: replace(u, version=0), "is stale: version 1 is served already"),
        (lambda u: replace(u, buckets=[{"foreign": torch.zeros(1)}]), "which the engine's model does not have"),
        (lambda u: replace(u, buckets=[{"model.norm.weight": torch.zeros(2)}]), "arrived with shape"),
    ],
)
def test_a_broken_update_is_refused_and_changes_nothing(engine: Transformers, break_it: Callable, message: str) -> None:
    engine.sync(update_of(engine, 1))
    before = {name: p.clone() for name, p in engine.model.named_parameters()}
    with pytest.raises(SyncError, match=message):
        engine.sync(break_it(update_of(engine, 2, shift=0.5)))
    assert engine.version == 1
    for name, parameter in engine.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_grouped_query_attention_is_that_of_repeated_heads() -> None:
    """Decoding (one query, masked columns) and prefill, against keys repeated for every head."""
    import torch.nn.functional as F

    from rollout.attention import grouped_query_attention

    generator = torch.Generator().manual_seed(0)
    key, value = (torch.randn(2, 3, 7, 8, generator=generator) for _ in range(2))
    repeated = [tensor.repeat_interleave(4, dim=1) for tensor in (key, value)]
    seen = torch.arange(7)[None, :] < torch.tensor([[3], [7]])
    for queries, mask in ((1, seen[:, None, None, :]), (7, torch.ones(7, 7).tril().bool()[None, None]), (7, None)):
        query = torch.randn(2, 12, queries, 8, generator=generator)
        causal = mask is None
        expected = F.scaled_dot_product_attention(query, *repeated, attn_mask=mask, is_causal=causal)
        got, _ = grouped_query_attention(torch.nn.Module(), query, key, value, mask)
        torch.testing.assert_close(got, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)
