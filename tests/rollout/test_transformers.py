"""The transformers engine's memory: how its cache grows, and how prompts come into it. What it samples is `test_contract`'s."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from rlcore.models import ModelSpec
from rlcore.types import Completion, Request, Sampling
from rollout.engines import transformers
from rollout.engines.transformers import Transformers


@pytest.fixture
def engine(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Transformers:
    return Transformers(tiny_spec, tokenizer, [], batch_size=4)


def ask(count: int, length: int, first: int = 0) -> list[Request]:
    """Nothing stops them before `length` tokens."""
    return [Request(f"p{i}", 0, i, (5, 6, 7), Sampling(max_new_tokens=length)) for i in range(first, first + count)]


def test_a_cache_that_holds_nothing_is_freed_before_a_larger_one_is_made(
    engine: Transformers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory at worst is then that of one cache. The new one is no narrower than the old, so that sizes do not go to and
    fro."""
    engine.generate(ask(2, 20))
    before = weakref.ref(engine._cache)
    made: list[tuple[int, int]] = []

    class Watched(transformers.SlotCache):
        def __init__(self, config: Any, slots: int, capacity: int, *rest: Any) -> None:
            if slots:
                assert before() is None
                made.append((slots, capacity))
            super().__init__(config, slots, capacity, *rest)

    monkeypatch.setattr(transformers, "SlotCache", Watched)
    engine.generate(ask(4, 10))
    assert made == [(4, 23)]
    engine.generate(ask(3, 20))
    assert len(made) == 1


def test_what_is_under_way_is_carried_over_into_a_larger_cache(engine: Transformers) -> None:
    expected = [c.token_ids for c in engine.generate([*ask(2, 30), *ask(2, 50, first=2), *ask(1, 5, first=4)])]
    engine.close()
    engine.submit([*ask(2, 30), *ask(1, 5, first=4)])
    done: list[Completion] = []
    while not done:
        done = engine.poll()
    assert len(done) == 1
    engine.submit(ask(2, 50, first=2))
    assert engine._state.capacity < 53
    while engine.busy:
        done += engine.poll()
    assert [c.token_ids for c in sorted(done, key=lambda c: c.problem_id)] == expected


def skewed(samples: int = 1) -> list[Request]:
    """One long prompt, many short ones."""
    lengths = [90, 3, 20, 1, 11, 40, 7, 5, 2, 30]
    prompts = [tuple(5 + (i * 7 + t * t) % 40 for t in range(length)) for i, length in enumerate(lengths)]
    return [
        Request(f"p{i}", k, 10 * i + k, ids, Sampling(max_new_tokens=6))
        for i, ids in enumerate(prompts)
        for k in range(samples)
    ]


def test_prompts_of_skewed_lengths_are_prefilled_together_as_each_alone(
    tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Twice, the second time behind rows that are under way: log-probs of tokens that follow are the model's, which needs the
    keys of every prompt in its own slot."""
    engine = Transformers(tiny_spec, tokenizer, [], batch_size=64)
    engine.submit(skewed(samples=3))
    engine.poll()
    done = engine.generate([replace(request, seed=1000 + request.seed) for request in skewed(samples=2)])
    assert len(done) == 20
    for completion in done:
        [expected] = engine.logprobs([(completion.prompt_ids, completion.token_ids)])
        assert completion.logprobs == pytest.approx(expected, abs=1e-5)


def test_the_prefill_of_skewed_lengths_reads_little_more_than_their_tokens(
    tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> None:
    """209 tokens, in 3 rows of 90 instead of 10; each prompt once, whatever the samples."""
    engine = Transformers(tiny_spec, tokenizer, [], batch_size=64)
    read: list[tuple[int, ...]] = []
    engine.model.get_input_embeddings().register_forward_hook(lambda _, given, __: read.append(tuple(given[0].shape)))
    engine.submit(skewed(samples=3))
    engine.poll()
    assert read[0] == (3, 90)
