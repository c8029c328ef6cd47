"""The engine contract, on the transformers engine, on real vLLM in float32 and, as far as it concerns a fake, on the fake.

The yardstick is a plain forward pass of a transformers model (`reference`), which is also what the learner computes. What
differs by design is said where it is tested: vLLM goes on from a prefix with fresh random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.protocols import Bucket, Engine, WeightUpdate
from rlcore.types import Completion, Request, Sampling, seed_from
from rollout.scripted import Scripted
from rollout.sync import SyncError, checksum, weight_update
from rollout.top_h import kept

RANK = 4  # of the engines' adapters
SETTINGS = [
    Sampling(temperature=0.5, max_new_tokens=24),
    Sampling(temperature=1.0, max_new_tokens=24),
    Sampling(temperature=1.3, max_new_tokens=24),
    Sampling(temperature=1.0, top_p=0.6, max_new_tokens=24),
    Sampling(temperature=1.5, top_h=0.5, max_new_tokens=24),
    Sampling(temperature=1.5, top_h=0.5, top_h_normalized=True, min_p=0.05, max_new_tokens=24),
]
PROMPTS = ["3+5-9=?\n", "1-2=?\n", "7+7+7+7+7=?\n"]

VLLM = pytest.param("vllm", marks=pytest.mark.xdist_group("vllm"))  # one engine, started once, in one process
POOL = pytest.param("pool", marks=pytest.mark.xdist_group("ray"))  # two transformers engines in processes of their own
every_engine = pytest.mark.parametrize("engine", ["transformers", VLLM, POOL, "scripted"], indirect=True)
every_model = pytest.mark.parametrize("engine", ["transformers", VLLM, POOL], indirect=True)


@pytest.fixture
def requests(tokenizer: PreTrainedTokenizerBase) -> Callable[..., list[Request]]:
    def ask(sampling: Sampling, count: int = 12) -> list[Request]:
        prompts = [tuple(tokenizer(text).input_ids) for text in PROMPTS]
        return [Request(f"p{i % 3}", i, seed_from("test", i), prompts[i % 3], sampling) for i in range(count)]

    return ask


def distribution(model: PreTrainedModel, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...], sampling: Sampling) -> Tensor:
    """(tokens + 1, V) log-probs, before each token and after the last, under the distribution that `sampling` draws from."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt_ids, *token_ids]])).logits[0, len(prompt_ids) - 1 :].float()
    logits = logits / sampling.temperature
    if sampling.top_h < 1:
        alpha, normalized = torch.tensor([sampling.top_h]), torch.tensor([sampling.top_h_normalized])
        count = kept(logits.softmax(-1).sort(descending=True)[0], alpha, normalized)
        logits = logits.masked_fill(logits.argsort(descending=True).argsort() >= count[:, None], -torch.inf)
    if sampling.min_p > 0:
        p = logits.softmax(-1)
        logits = logits.masked_fill(p < sampling.min_p * p.amax(-1, keepdim=True), -torch.inf)
    if sampling.top_p < 1:
        p = logits.softmax(-1)
        above = torch.stack([(p * (p > p[:, v : v + 1])).sum(-1) for v in range(p.shape[1])], 1)
        logits = logits.masked_fill(above >= sampling.top_p, -torch.inf)
    return logits.log_softmax(-1)


def expected_logprobs(model: PreTrainedModel, completion: Completion, sampling: Sampling) -> Tensor:
    table = distribution(model, completion.prompt_ids, completion.token_ids, sampling)[:-1]
    return table.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def updating(version: int, tensors: dict[str, Tensor], kind: Literal["full", "adapter"] = "full") -> WeightUpdate:
    """In several buckets."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return weight_update(version, shapes, tensors.items, kind, bucket_bytes=50_000)


def assert_parity(engine: Engine, model: PreTrainedModel, completions: list[Completion]) -> None:
    served = engine.logprobs([(c.prompt_ids, c.token_ids) for c in completions])
    for row, completion in zip(served, completions, strict=True):
        torch.testing.assert_close(torch.tensor(row), expected_logprobs(model, completion, Sampling()), atol=1e-5, rtol=0)


# -- what is sampled -----------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_logprobs_are_those_of_the_distribution_sampled_from(
    engine: Engine, reference: PreTrainedModel, requests: Callable, sampling: Sampling
) -> None:
    for completion in engine.generate(requests(sampling)):
        expected = expected_logprobs(reference, completion, sampling)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)


@every_model
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_tokens_are_drawn_from_that_distribution(
    engine: Engine, reference: PreTrainedModel, requests: Callable, sampling: Sampling
) -> None:
    """The first token of 2000 seeds against the exact probabilities: chi-square below its 99.99 % point."""
    [asked] = requests(replace(sampling, max_new_tokens=1), 1)
    drawn = engine.generate([replace(asked, sample=i, seed=seed_from("draw", i)) for i in range(2000)])
    expected = distribution(reference, asked.prompt_ids, (), sampling)[0].exp().double() * len(drawn)
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in drawn]), minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    chi_square = ((counts - expected)[common] ** 2 / expected[common]).sum().item()
    freedom = int(common.sum()) - 1
    assert chi_square < freedom + 3.72 * (2 * freedom) ** 0.5 + 10  # a normal tail, and what it lacks at few degrees


@every_engine
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_a_completion_does_not_depend_on_its_batch(engine: Engine, requests: Callable, sampling: Sampling) -> None:
    """Together, in another order, and alone."""
    asked = requests(sampling)
    together = [c.token_ids for c in engine.generate(asked)]
    assert [c.token_ids for c in engine.generate(asked[::-1])[::-1]] == together
    assert [engine.generate([request])[0].token_ids for request in asked[:3]] == together[:3]


@every_model
def test_prompts_of_more_tokens_than_one_pass_takes_are_sampled_from_as_if_alone(engine: Engine) -> None:
    """vLLM would begin one of them in the pass before, and draw for it: on a CPU its random numbers cannot be turned back."""
    asked = [Request(f"p{i}", i, i, (5 + i,) * 400, Sampling(max_new_tokens=6)) for i in range(40)]
    together = [c.token_ids for c in engine.generate(asked)]
    assert [engine.generate([request])[0].token_ids for request in asked] == together


@every_model
def test_another_seed_gives_other_tokens(engine: Engine, requests: Callable) -> None:
    [asked] = requests(Sampling(max_new_tokens=24), 1)
    drawn = engine.generate([replace(asked, seed=i) for i in range(8)])
    assert len({c.token_ids for c in drawn}) == 8


@every_model
def test_completions_end_at_eos_or_at_the_limit(engine: Engine, tokenizer: PreTrainedTokenizerBase, requests: Callable) -> None:
    eos = tokenizer.eos_token_id
    completions = engine.generate(requests(Sampling(max_new_tokens=30), 40))
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        if completion.finish_reason == "stop":
            assert completion.token_ids[-1] == eos
        else:
            assert len(completion.token_ids) == 30
        assert eos not in completion.token_ids[:-1]
        assert completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)


@every_model
def test_stop_strings_end_a_completion_and_are_cut_from_its_text(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, requests: Callable
) -> None:
    completions = engine.generate(requests(Sampling(max_new_tokens=60, stop=("7", "ab")), 24))
    stopped = [c for c in completions if c.finish_reason == "stop" and c.token_ids[-1] != tokenizer.eos_token_id]
    assert stopped
    for completion in stopped:
        assert "7" not in completion.text
        assert tokenizer.decode(completion.token_ids).endswith(("7", "ab"))
        assert len(completion.logprobs) == len(completion.token_ids)


@every_model
def test_greedy_is_deterministic_with_certainty(engine: Engine, requests: Callable) -> None:
    [asked] = requests(Sampling(temperature=0, max_new_tokens=8), 1)
    first, second = engine.generate([replace(asked, sample=seed, seed=seed) for seed in (0, 1)])
    assert first.token_ids == second.token_ids
    assert set(first.logprobs) == {0.0}


@every_engine
def test_a_prompt_longer_than_the_context_is_refused(engine: Engine) -> None:
    request = Request("long", 0, 0, (5,) * 510, Sampling(max_new_tokens=10))
    with pytest.raises(UserError, match=r"long has 510 tokens; with max_new_tokens 10 .* context of 512"):
        engine.submit([request])


@every_model
def test_a_sequence_that_fills_the_context_can_be_sampled_and_scored(engine: Engine, reference: PreTrainedModel) -> None:
    [completion] = engine.generate([Request("full", 0, 3, (5,) * 500, Sampling(temperature=1.3, max_new_tokens=12))])
    assert_parity(engine, reference, [completion])


# -- interrupt and go on -------------------------------------------------------------------------------------------------


def interrupted(engine: Engine, asked: list[Request]) -> list[Completion]:
    """The completions that are under way when the first one is done."""
    engine.submit(asked)
    done: list[Completion] = []
    while not done:
        done = engine.poll()
    partial = engine.interrupt()
    done += [completion for completion in partial if completion.finish_reason != "interrupted"]  # ended just then
    partial = [completion for completion in partial if completion.finish_reason == "interrupted"]
    assert partial
    assert len(done) + len(partial) == len(asked)
    assert not engine.busy
    assert engine.poll() == []
    return partial


def going_on(partial: list[Completion]) -> list[Request]:
    return [completion.resumed() for completion in partial]


@every_engine
def test_an_interrupted_completion_goes_on_from_its_forced_prefix(
    engine: Engine, reference: PreTrainedModel, requests: Callable
) -> None:
    """Its tokens, log-probs and weight versions are kept, and what follows is sampled after them, by new weights too."""
    partial = interrupted(engine, requests(Sampling(max_new_tokens=40)))
    assert any(c.token_ids for c in partial)
    before = engine.version
    engine.sync(updating(before + 1, weights(reference)))
    for begun, whole in zip(partial, engine.generate(going_on(partial)), strict=True):
        kept = len(begun.token_ids)
        assert begun.finish_reason == "interrupted"
        assert whole.finish_reason != "interrupted"
        assert whole.token_ids[:kept] == begun.token_ids
        assert whole.logprobs[:kept] == begun.logprobs
        assert len(whole.token_ids) <= 40
        assert whole.versions == (before,) * kept + (before + 1,) * (len(whole.token_ids) - kept)
        assert whole.loss_mask == (1,) * len(whole.token_ids)
        if not isinstance(engine, Scripted):
            expected = expected_logprobs(reference, whole, whole.sampling)
            torch.testing.assert_close(torch.tensor(whole.logprobs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("engine", ["transformers", POOL, "scripted"], indirect=True)
def test_what_was_interrupted_ends_as_if_nothing_had_happened(engine: Engine, requests: Callable) -> None:
    asked = requests(Sampling(max_new_tokens=40))
    unbroken = {c.seed: c.token_ids for c in engine.generate(asked)}
    for completion in engine.generate(going_on(interrupted(engine, asked))):
        assert completion.token_ids == unbroken[completion.seed]


@every_model
def test_the_continuation_does_not_repeat_the_random_numbers_of_the_prefix(engine: Engine, requests: Callable) -> None:
    """With the same numbers again, a model that ignores its input would say everything twice."""
    [asked] = requests(Sampling(max_new_tokens=24), 1)
    partial = replace(engine.generate([asked])[0], finish_reason="interrupted")
    tokens = partial.token_ids[:12]
    half = replace(partial, token_ids=tokens, logprobs=partial.logprobs[:12], versions=(0,) * 12, loss_mask=(1,) * 12)
    [whole] = engine.generate(going_on([half]))
    assert whole.token_ids[12:] != tokens


# -- new weights ---------------------------------------------------------------------------------------------------------


@every_model
def test_new_weights_are_served(engine: Engine, tiny_spec: ModelSpec, requests: Callable) -> None:
    changed = tiny_spec.load()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    before = engine.generate(requests(Sampling(max_new_tokens=12)))
    version = engine.version + 1
    sent = engine.sync(updating(version, weights(changed)))
    assert sent == {name: checksum(tensor) for name, tensor in weights(changed).items()}
    assert_parity(engine, changed, before)
    served = engine.checksums()
    assert "model.embed_tokens.weight" in served
    assert served == {name: sent[name] for name in served}
    for completion in engine.generate(requests(Sampling(max_new_tokens=12))):
        assert set(completion.versions) == {version}
        expected = expected_logprobs(changed, completion, Sampling())
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)


@every_model
def test_nothing_computed_by_old_weights_is_used_with_new_ones(engine: Engine, tiny_spec: ModelSpec) -> None:
    """A prompt long enough to be kept in a prefix cache, before and after a sync."""
    [asked] = [Request("long", 0, 1, tuple(range(6, 56)) * 8, Sampling(max_new_tokens=12))]
    engine.generate([asked])
    changed = tiny_spec.load()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter *= 1.1
    engine.sync(updating(engine.version + 1, weights(changed)))
    [completion] = engine.generate([asked])
    expected = expected_logprobs(changed, completion, Sampling())
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)


def adapter(model: PreTrainedModel, version: int, size: float) -> tuple[WeightUpdate, dict[str, Tensor]]:
    """A random adapter of every linear module but the head, and what it adds to each weight."""
    generator = torch.Generator().manual_seed(version)
    tensors, added = {}, {}
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight"):
            a, b = (
                torch.randn(shape, generator=generator) * size for shape in ((RANK, parameter.shape[1]), (len(parameter), RANK))
            )
            module = name.removesuffix(".weight")
            tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
            added[name] = b @ a
    return updating(version, tensors, "adapter"), added


@every_model
def test_an_adapter_is_served_in_place_of_the_one_before(engine: Engine, tiny_spec: ModelSpec, requests: Callable) -> None:
    """Two adapters in turn, each on the weights that the engine was made with; then full weights end it."""
    plain = tiny_spec.load()
    sampled = engine.generate(requests(Sampling(max_new_tokens=12)))
    for _ in range(2):
        merged = tiny_spec.load()
        update, added = adapter(plain, engine.version + 1, 0.2)
        with torch.no_grad():
            for name, parameter in merged.named_parameters():
                parameter += added.get(name, 0)
        engine.sync(update)
        assert_parity(engine, merged, sampled)
        for completion in engine.generate(requests(Sampling(max_new_tokens=12))):
            expected = expected_logprobs(merged, completion, Sampling())
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)
    engine.sync(updating(engine.version + 1, weights(plain)))
    assert_parity(engine, plain, sampled)


def with_buckets(update: WeightUpdate, change: Callable[[list[Bucket]], list[Bucket]]) -> WeightUpdate:
    buckets = [replace(b, tensors={name: tensor.clone() for name, tensor in b.tensors.items()}) for b in update.buckets]
    return replace(update, buckets=change(buckets))


def bit_flipped(buckets: list[Bucket]) -> list[Bucket]:
    [bucket] = [bucket for bucket in buckets if "model.norm.weight" in bucket.tensors]
    bucket.tensors["model.norm.weight"].view(torch.int32)[3] ^= 1
    return buckets


def rows_exchanged(buckets: list[Bucket]) -> list[Bucket]:
    weight = buckets[0].tensors["model.embed_tokens.weight"]
    weight[[0, 1]] = weight[[1, 0]]
    return buckets


def foreign(buckets: list[Bucket]) -> list[Bucket]:
    return [replace(buckets[0], tensors={"foreign": torch.zeros(1)}), *buckets[1:]]


def misshapen(buckets: list[Bucket]) -> list[Bucket]:
    return [replace(buckets[0], tensors={"model.embed_tokens.weight": torch.zeros(2)}), *buckets[1:]]


BROKEN: list[tuple[Callable[[list[Bucket]], list[Bucket]], str]] = [
    (lambda b: b[:-1], r"is partial: \d+ tensors never came, first 'model"),
    (lambda b: b[1:], r"bucket 1 of weight update \d+ came in place of bucket 0 .* first tensor is 'model"),
    (lambda b: [b[0], b[2], b[1], *b[3:]], "bucket 2 .* came in place of bucket 1"),
    (lambda b: [b[0], *b], "bucket 0 .* came in place of bucket 1"),
    (lambda b: [replace(b[0], version=b[0].version - 1), *b[1:]], "came in place of bucket 0 of update"),
    (bit_flipped, "'model.norm.weight' arrived corrupted"),
    (rows_exchanged, "'model.embed_tokens.weight' arrived corrupted"),
    (foreign, "'foreign' came twice, or unannounced"),
    (misshapen, "'model.embed_tokens.weight' arrived with shape"),
]


@every_engine
@pytest.mark.parametrize(("break_it", "message"), BROKEN)
def test_nothing_is_sampled_after_a_broken_update(
    engine: Engine, reference: PreTrainedModel, requests: Callable, break_it: Callable, message: str
) -> None:
    """Until an update has arrived whole. Dropped, reordered, repeated, delayed and corrupted buckets."""
    version = engine.version
    moved = {name: p + 0.5 for name, p in weights(reference).items()}
    with pytest.raises(SyncError, match=message):
        engine.sync(with_buckets(updating(version + 1, moved), break_it))
    assert engine.version == version
    with pytest.raises(SyncError, match=f"update {version + 1} did not arrive whole"):
        engine.submit(requests(Sampling(max_new_tokens=4)))
    with pytest.raises(SyncError, match="did not arrive whole"):
        engine.logprobs([((5,), (6,))])
    engine.sync(updating(version + 1, weights(reference)))
    if not isinstance(engine, Scripted):
        assert_parity(engine, reference, engine.generate(requests(Sampling(max_new_tokens=4))))


@every_engine
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: replace(m, version=0), "weight update 0 is stale"),
        (lambda m: replace(m, shapes={**m.shapes, "foreign": (1,)}), "'foreign', which the engine's model does not have"),
        (lambda m: replace(m, shapes={**m.shapes, "model.norm.weight": (2,)}), "'model.norm.weight' comes with shape"),
        (lambda m: replace(m, shapes=dict(list(m.shapes.items())[1:])), "does not bring 'model.embed_tokens.weight'"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_and_changes_nothing(
    engine: Engine, reference: PreTrainedModel, requests: Callable, change: Callable, message: str
) -> None:
    version, before = engine.version, engine.checksums()
    update = updating(version + 1, {name: p + 0.5 for name, p in weights(reference).items()})
    with pytest.raises(SyncError, match=message):
        engine.sync(replace(update, manifest=change(update.manifest)))
    assert (engine.version, engine.checksums()) == (version, before)
    assert engine.generate(requests(Sampling(max_new_tokens=4)))


@every_engine
def test_a_bucket_that_comes_when_its_update_is_over_is_refused(engine: Engine, reference: PreTrainedModel) -> None:
    update = updating(engine.version + 1, weights(reference))
    late = list(update.buckets)[1]
    engine.sync(update)
    with pytest.raises(SyncError, match=r"bucket 1 of weight update \d+ came when no update had begun"):
        engine.receive(late)


@every_model
def test_a_partial_adapter_is_refused(engine: Engine, reference: PreTrainedModel) -> None:
    update, _ = adapter(reference, engine.version + 1, 0.1)
    with pytest.raises(SyncError, match=r"is partial: \d+ tensors never came"):
        engine.sync(with_buckets(update, lambda buckets: buckets[:-1]))
    engine.sync(updating(engine.version + 1, weights(reference)))


@every_engine
def test_weights_do_not_change_under_completions_that_are_under_way(
    engine: Engine, reference: PreTrainedModel, requests: Callable
) -> None:
    if isinstance(engine, Scripted):
        pytest.skip("nothing of the fake depends on its weights")
    engine.submit(requests(Sampling(max_new_tokens=24)))
    engine.poll()
    with pytest.raises(RuntimeError, match=r"interrupt\(\) first"):
        engine.sync(updating(engine.version + 1, weights(reference)))
    engine.interrupt()
