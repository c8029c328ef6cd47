"""A compressed copy of the policy drafts, on real vLLM: nothing that is sampled may tell of it, and it follows the policy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlcore import plugins
from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.run.metrics import Mean, values
from rlcore.types import Request, Sampling, seed_from
from rollout.drafters.compressed import Compressed
from rollout.engines.vllm import Vllm
from rollout.sync import SyncError
from tests.rollout.test_contract import (
    assert_parity,
    distribution,
    expected_logprobs,
    going_on,
    interrupted,
    updating,
    weights,
    with_buckets,
)

pytestmark = pytest.mark.xdist_group("vllm")
TOKENS = 3
PLAIN, GREEDY = Sampling(max_new_tokens=24), Sampling(temperature=0.0, max_new_tokens=24)
SETTINGS = [
    PLAIN,
    Sampling(temperature=0.5, max_new_tokens=24),
    Sampling(temperature=1.3, max_new_tokens=24),
    Sampling(temperature=1.0, top_p=0.6, max_new_tokens=24),
    Sampling(temperature=1.0, top_k=4, max_new_tokens=24),
]
INT8, TWO_BITS = {"name": "rtn", "bits": 8, "run": 0}, {"name": "rtn", "bits": 2, "run": 64}
FOUR_BITS = {"name": "rtn", "bits": 4, "run": 64}
MVQ = [{"name": "magnitude", "pattern": [4, 8]}, {"name": "mvq", "codes": 32}]


def drafter(methods: Any, **options: Any) -> Compressed:
    made: Compressed = plugins.bind("rollout.drafters", "compressed", {"methods": methods, **options})()
    return made


@pytest.fixture(scope="session")
def started(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Iterator[Vllm]:
    engine = Vllm(tiny_spec, tokenizer, [tokenizer.eos_token_id], kv_cache_gb=0.1, drafter=drafter(INT8, tokens=TOKENS))
    yield engine
    engine.close()


def sharp(spec: ModelSpec, seed: int) -> PreTrainedModel:
    """Other weights than any other seed's, under which some tokens are a hundred times as likely as others."""
    model = spec.load()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                size = 2.0 if "embed" in name else 1.3
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)
    return model.eval()


@pytest.fixture(scope="session")
def policy(tiny_spec: ModelSpec) -> PreTrainedModel:
    return sharp(tiny_spec, 1)


@pytest.fixture
def engine(request: pytest.FixtureRequest, started: Vllm, tiny_spec: ModelSpec, policy: PreTrainedModel) -> Vllm:
    """With the drafter's methods that the test asks for, int8 if it does not; serves the policy."""
    started._llm.collective_rpc("copy_with", args=(drafter(getattr(request, "param", INT8)), tiny_spec))
    serve(started, policy)
    started.metrics()
    return started


def serve(engine: Vllm, model: PreTrainedModel) -> None:
    engine.sync(updating(engine.version + 1, weights(model)))


def asked(sampling: Sampling, count: int = 12) -> list[Request]:
    return [Request(f"p{i % 5}", i, seed_from("drafts", i), (5 + i % 5, 6, 7, 8), sampling) for i in range(count)]


def accepted(engine: Vllm) -> float:
    """The share of the drafts for a few completions."""
    engine.metrics()
    engine.generate(asked(PLAIN, 40))
    return engine.metrics()["drafter/accepted"].value


def copy_of(policy: PreTrainedModel, spec: ModelSpec, methods: Any) -> PreTrainedModel:
    """What should draft."""
    codec, drafting = drafter(methods).codec(spec), copy.deepcopy(policy)
    with torch.no_grad():
        for name, parameter in drafting.named_parameters():
            if name in codec.names:
                parameter.copy_(codec.encode(name, parameter).decode())
    return drafting


far = pytest.mark.parametrize("engine", [TWO_BITS], indirect=True, ids=["two_bits"])  # nearly all drafts are refused
near_and_far = pytest.mark.parametrize("engine", [INT8, FOUR_BITS, TWO_BITS], indirect=True, ids=["int8", "four", "two"])


# -- what is sampled -----------------------------------------------------------------------------------------------------


@near_and_far
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_logprobs_are_those_of_the_policy(engine: Vllm, policy: PreTrainedModel, sampling: Sampling) -> None:
    for completion in engine.generate(asked(sampling)):
        expected = expected_logprobs(policy, completion, replace(sampling, top_k=0))
        if sampling.top_k:  # `distribution` knows of top-p alone
            table = distribution(policy, completion.prompt_ids, completion.token_ids, Sampling())[:-1]
            expected = expected - table.topk(sampling.top_k).values.logsumexp(-1)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)


@near_and_far
@pytest.mark.parametrize("sampling", [PLAIN, SETTINGS[3]], ids=str)
def test_tokens_are_drawn_from_the_policy(
    engine: Vllm, policy: PreTrainedModel, tiny_spec: ModelSpec, sampling: Sampling, request: pytest.FixtureRequest
) -> None:
    """Tokens in the order of how much likelier the policy makes them than the copy, F the policy's distribution function in
    that order, its steps filled at random: then F(x) is uniform, and a sampler that leans to the copy crowds the low end. Ten
    tokens of 600 completions; for each place in a completion the chi-square of tenths, below its 99.99 % point."""
    drafting = copy_of(policy, tiny_spec, request.node.callspec.params["engine"])
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(10, 10)
    for completion in engine.generate(asked(replace(sampling, max_new_tokens=10), 600)):
        p, q = (distribution(m, completion.prompt_ids, completion.token_ids, sampling)[:-1] for m in (policy, drafting))
        order = (p - q).nan_to_num(nan=torch.inf).argsort(-1)  # of what neither can draw it is nan
        rank = (order == torch.tensor(completion.token_ids)[:, None]).int().argmax(-1)[:, None]
        sorted_p = p.exp().gather(-1, order)
        step = sorted_p.gather(-1, rank)
        below = sorted_p.cumsum(-1).gather(-1, rank) - step
        at = (below + step * torch.rand(step.shape, generator=generator))[:, 0].clamp(0, 0.9999)
        for place, tenth in enumerate((at * 10).int().tolist()):
            counts[place, tenth] += 1
    expected = counts.sum(1, keepdim=True) / 10
    chi_square = ((counts - expected) ** 2 / expected).sum(1)
    assert chi_square.max() < 33.7  # 9 degrees of freedom


@near_and_far
def test_greedy_tokens_are_the_policys(engine: Vllm, policy: PreTrainedModel) -> None:
    for completion in engine.generate(asked(GREEDY)):
        table = distribution(policy, completion.prompt_ids, completion.token_ids, Sampling())[:-1]
        assert list(completion.token_ids) == table.argmax(-1).tolist()
        assert set(completion.logprobs) == {0.0}


@near_and_far
def test_a_completion_does_not_depend_on_its_batch(engine: Vllm) -> None:
    """Together with greedy ones, in another order, and alone."""
    requests = [replace(r, sampling=GREEDY if r.sample % 4 == 3 else PLAIN) for r in asked(PLAIN)]
    together = [c.token_ids for c in engine.generate(requests)]
    torch.manual_seed(123)
    assert [c.token_ids for c in engine.generate(requests[::-1])[::-1]] == together
    assert [engine.generate([request])[0].token_ids for request in requests[:4]] == together[:4]


@near_and_far
def test_completions_end_where_they_should(engine: Vllm, tokenizer: PreTrainedTokenizerBase) -> None:
    """A pass brings several tokens, and what follows an end must not be among them: an eos, a stop string, the limit."""
    eos, stop = tokenizer.eos_token_id, ("7", "ab")
    completions = engine.generate(asked(replace(PLAIN, max_new_tokens=30, stop=stop), 60))
    kinds = set()
    for completion in completions:
        tokens = completion.token_ids
        before = tokenizer.decode(tokens[:-1], skip_special_tokens=True)
        assert eos not in tokens[:-1]
        assert not any(string in before for string in stop)
        assert not any(string in completion.text for string in stop)
        assert len(completion.logprobs) == len(tokens) <= 30
        kinds.add("eos" if tokens[-1] == eos else completion.finish_reason)
    assert kinds == {"eos", "stop", "length"}


@far
def test_completions_reach_the_end_of_the_context(engine: Vllm, policy: PreTrainedModel) -> None:
    prompt = tuple(range(5, 55)) * 10
    completions = engine.generate([Request("long", i, i, prompt, replace(PLAIN, max_new_tokens=12)) for i in range(20)])
    assert max(len(c.prompt_ids) + len(c.token_ids) for c in completions) == engine.context
    for completion in completions:
        expected = expected_logprobs(policy, completion, PLAIN)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)
    assert_parity(engine, policy, completions)


@near_and_far
def test_an_interrupted_completion_goes_on(engine: Vllm, policy: PreTrainedModel) -> None:
    partial = interrupted(engine, asked(replace(PLAIN, max_new_tokens=40)))
    assert any(c.token_ids for c in partial)
    for begun, whole in zip(partial, engine.generate(going_on(partial)), strict=True):
        assert whole.token_ids[: len(begun.token_ids)] == begun.token_ids
        assert len(whole.logprobs) == len(whole.token_ids) <= 40
        torch.testing.assert_close(torch.tensor(whole.logprobs), expected_logprobs(policy, whole, PLAIN), atol=1e-5, rtol=0)


# -- the copy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [FOUR_BITS, MVQ], indirect=True, ids=["four", "mvq"])
def test_what_drafts_is_the_compressed_copy(
    engine: Vllm, policy: PreTrainedModel, tiny_spec: ModelSpec, request: pytest.FixtureRequest
) -> None:
    """Greedy drafts and what is accepted of them, as two plain models have it: the numbers of both are the same."""
    drafting = copy_of(policy, tiny_spec, request.node.callspec.params["engine"])
    requests, passes, took = asked(GREEDY, 5), 0, 0
    completions = engine.generate(requests)
    for completion in completions:
        tokens, text = len(completion.prompt_ids) + 1, [*completion.prompt_ids, *completion.token_ids]
        while tokens < len(text):
            drafts = text[:tokens]
            for _ in range(TOKENS):
                drafts.append(int(distribution(drafting, tuple(drafts), (), PLAIN)[0].argmax()))
            wanted = distribution(policy, tuple(drafts[:tokens]), tuple(drafts[tokens:]), PLAIN).argmax(-1).tolist()
            agreed = next((i for i in range(TOKENS) if drafts[tokens + i] != wanted[i]), TOKENS)
            passes, took, tokens = passes + 1, took + agreed, tokens + agreed + 1
    told = engine.metrics()
    assert told["drafter/accepted"] == Mean(took, TOKENS * passes)
    assert told["drafter/tokens_per_pass"] == Mean(passes + took, passes)
    assert 0 < took < TOKENS * passes
    assert "drafter/accepted" not in values(engine.metrics())  # told once


def test_it_follows_the_policy_to_other_weights(engine: Vllm, tiny_spec: ModelSpec) -> None:
    assert accepted(engine) > 0.95
    other = sharp(tiny_spec, 2)
    serve(engine, other)
    assert accepted(engine) > 0.95
    for completion in engine.generate(asked(PLAIN)):
        expected = expected_logprobs(other, completion, PLAIN)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)
    assert engine.metrics()["drafter/seconds"].value > 0


def test_it_drafts_from_the_start(engine: Vllm, tiny_spec: ModelSpec) -> None:
    """Before any sync, the copy is that of the weights that the engine was made with."""
    serve(engine, tiny_spec.load())
    engine._llm.collective_rpc("copy_with", args=(drafter(INT8), tiny_spec))
    assert accepted(engine) > 0.95


def test_a_broken_update_leaves_nothing_behind(engine: Vllm, tiny_spec: ModelSpec, policy: PreTrainedModel) -> None:
    other = updating(engine.version + 1, weights(sharp(tiny_spec, 2)))
    with pytest.raises(SyncError, match="is partial"):
        engine.sync(with_buckets(other, lambda buckets: buckets[:-1]))
    serve(engine, policy)
    assert accepted(engine) > 0.95
    assert_parity(engine, policy, engine.generate(asked(PLAIN)))


# -- what is refused -----------------------------------------------------------------------------------------------------


def test_min_p_is_refused(engine: Vllm) -> None:
    with pytest.raises(UserError, match=r"leave out rollout\.min_p or rollout\.drafter"):
        engine.submit(asked(replace(PLAIN, min_p=0.1)))
    assert not engine.busy


@pytest.mark.parametrize("kind", ["adapter", "sparse", "codes"])
def test_updates_without_the_whole_weights_are_refused(engine: Vllm, policy: PreTrainedModel, kind: Any) -> None:
    version = engine.version
    update = updating(version + 1, weights(policy))
    with pytest.raises(SyncError, match=f"brings {kind}"):
        engine.sync(replace(update, manifest=replace(update.manifest, kind=kind)))
    assert engine.version == version
    assert engine.generate(asked(PLAIN, 1))


def test_an_engine_of_adapters_is_refused(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match=r"set lora\.serve=merged"):
        Vllm(replace(tiny_spec, adapter_rank=4), tokenizer, [1], drafter=drafter(INT8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": {"name": "wanda", "share": 0.5}}, "wanda looks at calibration text"),
        ({"methods": []}, "methods cannot be"),
        ({"methods": "rtn", "tokens": 0}, "tokens cannot be 0"),
        ({"methods": "rtn", "bits": 4}, "no option 'bits'"),
        ({}, "needs the option 'methods'"),
    ],
)
def test_a_drafter_that_cannot_be_is_refused_without_a_model(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plugins.bind("rollout.drafters", "compressed", options)()
