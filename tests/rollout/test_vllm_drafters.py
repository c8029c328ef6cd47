"""`history`, `ngram` and `gsd` draft in real vLLM: greedy, it says what it says without drafts, token for token; sampled, its
tokens have the policy's distribution. One engine, which every test gives another drafter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlcore import plugins
from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.run.metrics import Mean, values
from rlcore.types import Completion, Request, Sampling, seed_from
from rollout.decoding.drafter import Drafter, Row
from rollout.decoding.tree import Tree
from rollout.drafters.history import History
from rollout.drafters.ngram import Ngram
from rollout.engines.vllm import Vllm
from rollout.sampling import SamplingRows, processed
from rollout.vllm_proposer import Proposer
from tests.rollout.test_contract import RANK, adapter, assert_parity, expected_logprobs, going_on, updating, weights
from tests.rollout.test_drafter import SETTINGS, serve, sharp
from tests.rollout.test_tree_drafters import BROKEN, asked, sharpened

pytestmark = pytest.mark.xdist_group("vllm")
HOSTED = ["history", "ngram", "gsd"]
GREEDY, PLAIN = Sampling(temperature=0, max_new_tokens=24), Sampling(max_new_tokens=24)
Host = Callable[..., Vllm]


@pytest.fixture(scope="module")
def started(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Iterator[Vllm]:
    spec, stop_ids = replace(tiny_spec, adapter_rank=RANK), [tokenizer.eos_token_id]
    engine = Vllm(spec, tokenizer, stop_ids, kv_cache_gb=0.1, max_num_seqs=64, drafter=History(depth=8))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def policy(tiny_spec: ModelSpec) -> PreTrainedModel:
    return sharp(tiny_spec, 1)


@pytest.fixture(scope="module")
def noisy(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> str:
    """Where a model is that is like the policy."""
    return sharpened(tiny_spec, tmp_path_factory.mktemp("noisy"), 0.01, tokenizer).location


@pytest.fixture
def host(started: Vllm, tiny_spec: ModelSpec, policy: PreTrainedModel, noisy: str) -> Host:
    """The engine with the drafter of that name, or with this one; it serves the policy."""
    serve(started, policy)

    def hosting(drafter: str | Drafter, drafts_up_to: int = 64) -> Vllm:
        if isinstance(drafter, str):
            drafter = plugins.bind("rollout.drafters", drafter, {"model": noisy} if drafter == "gsd" else {})()
        started._llm.collective_rpc("draft_with", args=(drafter, tiny_spec, drafts_up_to))
        started.metrics()
        return started

    return hosting


def alike(sampling: Sampling, count: int) -> list[Request]:
    """The same few prompts over and over; completions have different limits."""
    limits = [sampling.max_new_tokens - i % 5 for i in range(count)]
    return [
        Request(f"p{i % 3}", i, seed_from("alike", i), (5 + i % 3, 6, 7, 8), replace(sampling, max_new_tokens=limit))
        for i, limit in enumerate(limits)
    ]


def without_drafts(host: Host, requests: Sequence[Request]) -> list[Completion]:
    engine = host("ngram", 0)
    completions = engine.generate(requests)
    assert engine.metrics()["drafter/accepted"] == Mean(0, 0)
    return completions


def proposer(engine: Vllm) -> Proposer:
    [found] = engine._llm.collective_rpc(lambda worker: worker.model_runner.drafter)
    return found


# -- what is sampled -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 20])
@pytest.mark.parametrize("name", HOSTED)
def test_greedy_completions_are_those_without_drafts(host: Host, name: str, size: int) -> None:
    """So many at a time: tokens, finish reasons, texts, whatever ends them; the second time by what was learned before."""
    requests = asked(0.0)
    expected = without_drafts(host, requests)
    sampled = sum(len(c.token_ids) - len(r.prefix.token_ids) for c, r in zip(expected, requests, strict=True))
    engine, passes = host(name), []
    for _ in range(2):
        assert [c for i in range(0, 20, size) for c in engine.generate(requests[i : i + size])] == expected
        told = engine.metrics()
        assert told["drafter/tokens_per_pass"].total == sampled
        passes.append(told["drafter/tokens_per_pass"].count)
    assert values(engine.metrics()).keys() == {"drafter/seconds"}  # the rest is told once
    assert passes[1] < 0.9 * sampled
    assert name != "history" or passes[1] < 0.7 * passes[0]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("name", HOSTED)
def test_logprobs_are_those_of_the_policy(host: Host, policy: PreTrainedModel, name: str, sampling: Sampling) -> None:
    """Of drafts that were accepted, of what was drawn in the place of others, and of what follows them."""
    engine, requests = host(History(probable=0.01) if name == "history" else name), alike(sampling, 12)
    for completion in [*engine.generate(requests), *engine.generate(requests)]:
        expected = processed_logprobs(policy, completion)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)
    assert 0 < engine.metrics()["drafter/accepted"].value < 1


@torch.no_grad()
def processed_logprobs(policy: PreTrainedModel, completion: Completion) -> Tensor:
    text = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
    logits = policy(text).logits[0, len(completion.prompt_ids) - 1 : -1]
    settings = SamplingRows.of([completion.sampling] * len(logits), logits.shape[1], logits.device)
    return processed(logits, settings).log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]


class Likeliest(Drafter):
    """Drafts the policy's likeliest tokens, as far as there is room."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self.after = cache(lambda ids: int(policy(torch.tensor([ids])).logits[0, -1].argmax()))

    def propose(self, rows: Sequence[Row]) -> list[Tree]:
        return [Tree.chain(self._draft(row)) for row in rows]

    def _draft(self, row: Row) -> list[int]:
        ids = list(row.ids)
        for _ in range(row.room):
            ids.append(self.after(tuple(ids)))
        return ids[len(row.ids) - 1 :]


@pytest.mark.parametrize("sampling", [PLAIN, Sampling(temperature=0.7), Sampling(top_p=0.6), Sampling(top_k=4)], ids=str)
def test_tokens_are_drawn_from_the_policy(
    host: Host, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling
) -> None:
    """The third token of completions of one prompt, where the likeliest ones are drafted. Its distribution is enumerated, and
    the total variation between it and that of so many draws is above the bound once in 10⁴ times at most."""
    prompt, count = (5, 6, 7, 8), 2000
    expected = third_token(policy, prompt, sampling, tokenizer.eos_token_id)
    engine = host(Likeliest(policy))
    requests = [Request("p", i, seed_from("draws", i), prompt, replace(sampling, max_new_tokens=4)) for i in range(count)]
    drawn = [completion.token_ids[2] for completion in engine.generate(requests) if len(completion.token_ids) > 2]
    seen = torch.bincount(torch.tensor([*drawn, *(count - len(drawn)) * [len(expected) - 1]]), minlength=len(expected)) / count
    distance, mean = (float(each.sum()) / 2 for each in ((seen - expected).abs(), (expected * (1 - expected) / count).sqrt()))
    assert 0.05 < engine.metrics()["drafter/accepted"].value < 0.9
    assert distance < mean + math.sqrt(math.log(1e4) / (2 * count))  # McDiarmid: a draw changes the distance by 1 / count


@torch.no_grad()
def third_token(policy: PreTrainedModel, prompt: tuple[int, ...], sampling: Sampling, eos: int) -> Tensor:
    """(V + 1,) how probable each third token of a completion is; the last: that it has ended before."""
    vocabulary = torch.arange(policy.config.vocab_size)
    texts, chances = torch.tensor([prompt]), torch.ones(1)
    for place in range(3):
        settings = SamplingRows.of([sampling] * len(texts), len(vocabulary), texts.device)
        joint = chances[:, None] * processed(policy(texts).logits[:, -1], settings).softmax(-1)
        if place < 2:
            joint[:, eos] = 0
            chances = joint.flatten()
            texts = torch.cat([texts.repeat_interleave(len(vocabulary), 0), vocabulary.repeat(len(texts))[:, None]], 1)
    third = joint.sum(0)
    return torch.cat([third, 1 - third.sum(0, keepdim=True)])


@pytest.mark.parametrize("name", HOSTED)
def test_completions_reach_the_end_of_the_context(host: Host, name: str) -> None:
    """Others beside them are drafted for as ever."""
    prompt = tuple(range(5, 45)) * 12
    requests = [Request("long", i, i, prompt, replace(GREEDY, max_new_tokens=32)) for i in (0, 1)] + alike(GREEDY, 2)
    expected = without_drafts(host, requests)
    engine = host(name)
    assert len(prompt) + len(expected[0].token_ids) == engine.context
    for _ in range(2):
        assert engine.generate(requests) == expected
    assert engine.metrics()["drafter/accepted"].total > 0


# -- which row is which --------------------------------------------------------------------------------------------------


class Truth(Drafter):
    """Drafts what will be said, and sees to it that a row is what it says it is."""

    def __init__(self, completions: Sequence[Completion]) -> None:
        self.truth = {completion.seed: completion for completion in completions}
        self.begun: list[int] = []
        self.ended: list[tuple[int, Any]] = []

    def begin(self, rows: Sequence[Row], hidden: Any) -> None:
        self.begun += [row.request.seed for row in rows]

    def propose(self, rows: Sequence[Row]) -> list[Tree]:
        return [Tree.chain([row.ids[-1], *self._rest(row)[: row.room]]) for row in rows]

    def forget(self, row: Row) -> None:
        assert (self._rest(row) == ()) == (row.finish_reason != "interrupted")
        self.ended.append((row.request.seed, row.finish_reason))

    def _rest(self, row: Row) -> tuple[int, ...]:
        completion = self.truth[row.request.seed]
        text = (*completion.prompt_ids, *completion.token_ids)
        assert tuple(row.ids[: len(text)]) == text[: len(row.ids)]
        return text[len(row.ids) :]


def test_every_row_is_what_was_asked(host: Host) -> None:
    """Of prompts that are alike, with forced prefixes, that end at different places and are stopped twice: all drafts are
    taken, and no row keeps what a pass said beyond its end."""
    requests = [replace(request, sample=i, seed=i) for i, request in enumerate([*asked(0.0), *alike(GREEDY, 20)])]
    expected = without_drafts(host, requests)
    drafter = Truth(expected)
    engine, done = host(drafter), []
    for passes in (2, 1, 99):
        engine.submit(requests)
        done += [completion for _ in range(passes) for completion in engine.poll()]
        stopped = engine.interrupt()
        done += [completion for completion in stopped if completion.finish_reason != "interrupted"]
        requests = going_on([completion for completion in stopped if completion.finish_reason == "interrupted"])
    assert sorted(done, key=lambda c: c.sample) == expected
    assert engine.metrics()["drafter/accepted"].value == 1
    assert sorted(drafter.begun) == sorted(seed for seed, _ in drafter.ended)
    assert {reason for _, reason in drafter.ended} == {"stop", "length", "interrupted"}
    assert proposer(engine)._rows == {}


@pytest.mark.parametrize("name", HOSTED)
def test_an_interrupted_completion_goes_on(host: Host, policy: PreTrainedModel, name: str) -> None:
    requests = alike(replace(GREEDY, max_new_tokens=40), 6) + alike(replace(PLAIN, max_new_tokens=40), 6)
    requests = [replace(request, sample=i) for i, request in enumerate(requests)]
    expected, engine = without_drafts(host, requests[:6]), host(name)
    for _ in range(2):
        engine.submit(requests)
        done = [completion for _ in range(5) for completion in engine.poll()]
        begun = engine.interrupt()
        assert sum(len(completion.token_ids) for completion in begun) > 20
        whole = sorted([*done, *engine.generate(going_on(begun))], key=lambda completion: completion.sample)
        assert whole[:6] == expected
        for completion in whole[6:]:
            table = expected_logprobs(policy, completion, PLAIN)
            torch.testing.assert_close(torch.tensor(completion.logprobs), table, atol=1e-5, rtol=0)


def test_history_learns_every_completion_once_and_whole(host: Host) -> None:
    history = History()
    engine, requests = host(history, 4), alike(GREEDY, 12)
    engine.submit(requests)
    done = [completion for _ in range(6) for completion in engine.poll()]
    done += engine.generate(going_on(engine.interrupt()))
    learned = [(prompt, tuple(tokens)) for prompt, said in history._said.items() for tokens in said]
    assert sorted(learned) == sorted((completion.prompt_ids, completion.token_ids) for completion in done)


# -- when it drafts ------------------------------------------------------------------------------------------------------


def test_nothing_is_drafted_while_more_rows_are_under_way(host: Host) -> None:
    """When some of them are done, the rest is drafted for."""
    few = [replace(request, sampling=replace(GREEDY, max_new_tokens=6)) for request in alike(GREEDY, 8)]
    expected, engine = without_drafts(host, few), host("history", 4)
    assert {len(completion.token_ids) for completion in expected} == {6}  # all are under way to the end
    assert engine.generate(few) == expected
    told = engine.metrics()
    assert told["drafter/accepted"] == Mean(0, 0)
    assert told["drafter/tokens_per_pass"] == Mean(48, 48)
    some_longer = few[:4] + [replace(request, sampling=GREEDY) for request in few[4:]]
    assert engine.generate(some_longer)[:4] == expected[:4]
    assert engine.metrics()["drafter/accepted"].count > 0
    assert engine.generate(few[:4]) == expected[:4]
    assert engine.metrics()["drafter/accepted"].total > 8


def test_texts_are_scored_as_ever(host: Host, policy: PreTrainedModel) -> None:
    engine = host("gsd")
    assert_parity(engine, policy, engine.generate(alike(PLAIN, 12)))
    assert proposer(engine)._rows == {}


@pytest.mark.parametrize("name", HOSTED)
def test_drafts_are_verified_by_the_weights_served_now(host: Host, tiny_spec: ModelSpec, name: str) -> None:
    """Whole ones, and an adapter. What drafts is as it was."""
    requests, engine, spoken = alike(GREEDY, 12), host(name), set()
    engine.generate(requests)
    for update in (
        updating(engine.version + 1, weights(sharp(tiny_spec, 2))),
        adapter(tiny_spec.load(), engine.version + 2, 0.2)[0],
    ):
        engine.sync(update)
        engine.metrics()
        drafted = [engine.generate(requests) for _ in range(2)]
        assert engine.metrics()["drafter/accepted"].count > 0
        proposer(engine).at_most = 0
        assert drafted == [engine.generate(requests)] * 2
        proposer(engine).at_most = 64
        spoken.add(drafted[0][0].token_ids)
    assert len(spoken) == 2


# -- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_drafter_is_named(host: Host, how: str) -> None:
    """The engine is none the worse."""
    make, told = BROKEN[how]

    class Broken(Drafter):
        def propose(self, rows: Sequence[Row]) -> list[Tree]:
            return [make(row) for row in rows]

    expected, engine = without_drafts(host, alike(GREEDY, 4)), host(Broken())
    with pytest.raises(UserError, match=f"^the drafter Broken failed: .*{told}"):
        engine.generate(alike(PLAIN, 12))
    engine.interrupt()
    assert host("ngram").generate(alike(GREEDY, 4)) == expected


@pytest.mark.parametrize("hook", ["begin", "forget"])
def test_a_drafter_whose_hook_fails_is_named(host: Host, hook: str) -> None:
    class Broken(Ngram):
        pass

    def fails(*_: Any) -> None:
        raise KeyError(hook)

    setattr(Broken, hook, fails)
    with pytest.raises(UserError, match=f"^the drafter Broken failed: KeyError: '{hook}'"):
        host(Broken()).generate(alike(PLAIN, 12))
    host("ngram").interrupt()


def test_longer_drafts_than_vllm_verifies_are_refused(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match=r"128 tokens at most: lower rollout\.drafter\.depth 129"):
        Vllm(tiny_spec, tokenizer, [1], drafter=History(depth=129))


def test_min_p_is_refused(host: Host) -> None:
    with pytest.raises(UserError, match=r"leave out rollout\.min_p or rollout\.drafter"):
        host("ngram").submit(alike(replace(PLAIN, min_p=0.1), 1))
