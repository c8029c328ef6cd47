"""The loop: what any drafter makes of it is plain decoding, and a drafter that is broken stops it by name."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.plugins import find, names
from rlcore.types import Prefix, Request, Sampling
from rollout.decoding.decode import Decoder, decode
from rollout.decoding.drafter import Drafter, Row
from rollout.decoding.model import Read
from rollout.decoding.tree import Tree
from rollout.decoding.worth import Worth
from rollout.engines.transformers import Transformers

STOP = [3, 7]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "ngram": [{}, {"depth": 2, "most": 1}],
    "history": [{}, {"probable": 0.6, "depth": 3}],
    "draft_model": [{}, {"depth": 3, "children": 3, "width": 2}],
    "heads": [
        {"of": {"name": "firp"}, "nodes": 6},
        {"of": {"name": "hidden_transfer", "steps": 1}},
        {"of": {"name": "medusa"}},
    ],
    "gsd": [{}, {"same": 0, "children": 3, "probable": 0.01, "sibling": 0.05, "nodes": 12}],
}
DRAFTERS = [(name, options) for name, each in OPTIONS.items() for options in each]


class Plain(Drafter):
    def propose(self, rows: Sequence[Row]) -> list[Tree]:
        return [Tree.chain(row.ids[-1:]) for row in rows]


def test_every_drafter_of_trees_is_tested() -> None:
    every = {name: find("rollout.drafters", name) for name in names("rollout.drafters")}
    assert set(OPTIONS) == {name for name, kind in every.items() if issubclass(kind, Drafter)}


# -- lossless -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), DRAFTERS)
def test_greedy_decoding_is_plain_decoding(
    made: Callable,
    target: PreTrainedModel,
    draft: PreTrainedModel,
    ask: Callable,
    plainly: Callable,
    name: str,
    options: dict[str, Any],
) -> None:
    """Token for token, in batches of 1, 4 and 16, with a drafter that is kept between them. Nothing is drafted in vain: drafts
    were accepted, and the target was asked less often."""
    drafter = made(name, options, draft)
    accepted, forwards, plain = 0, 0, 0
    for count in (1, 4, 16):
        for seed in (0, 1, 1):  # the same prompts once more, for what learns of them
            requests = ask(count, seed, temperature=0)
            done, counts = decode(target, requests, drafter, STOP)
            for request, each in zip(requests, done, strict=True):
                expected = plainly(request, STOP)
                assert each.token_ids == expected
                assert each.finish_reason == ("stop" if expected[-1] in STOP else "length")
                assert each.logprobs == (0.0,) * len(expected)
            accepted += counts.accepted
            forwards += counts.target_forwards
            plain += max(len(each.token_ids) for each in done)
            assert counts.tokens == sum(len(each.token_ids) for each in done)
    assert accepted > 0
    assert forwards < plain


def test_any_trees_leave_greedy_decoding_as_it_is(
    target: PreTrainedModel, ask: Callable, plainly: Callable, wild: type
) -> None:
    """Random ones, with more or less of the truth in them: the rows of a round have different trees and accepted lengths."""
    requests = [request for seed in range(3) for request in ask(16, seed, temperature=0)]
    truth = {request.seed: plainly(request, STOP) for request in requests}
    drafter = wild(truth)
    done, counts = decode(target, requests, drafter, STOP)
    assert [each.token_ids for each in done] == [truth[request.seed] for request in requests]
    assert set(drafter.accepted) >= {0, 1, 2, 3, 4}
    assert counts.accepted == sum(drafter.accepted)


@pytest.mark.parametrize(
    "sampling", [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.3, "top_k": 5, "min_p": 0.05}]
)
@pytest.mark.parametrize("name", ["ngram", "history", "gsd", "heads"])
def test_matched_drafts_give_the_very_completions_of_the_engine(
    made: Callable,
    tiny_spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    sampling: dict[str, float],
) -> None:
    """Sampled, with the same seeds: tokens and log-probs, forced prefixes included."""
    settings = Sampling(max_new_tokens=20, **sampling)  # type: ignore[arg-type]
    prefix = Prefix((9, 8), (-1.0, -2.0), (0, 0), (1, 1))
    requests = [Request(f"p{i}", 0, i, (5, 6, 7 + i % 3), settings, prefix if i % 4 == 1 else Prefix()) for i in range(12)]
    engine = Transformers(tiny_spec, tokenizer, STOP, batch_size=5)
    expected = {c.problem_id: c for c in engine.generate(requests)}
    drafter = made(name, OPTIONS[name][0], tiny_spec.load())
    for _ in range(2):
        done, _ = decode(tiny_spec.load(), requests, drafter, STOP)
        for request, each in zip(requests, done, strict=True):
            completion = expected[request.problem_id]
            kept = len(request.prefix.token_ids)
            assert each.token_ids == completion.token_ids[kept:]
            assert each.finish_reason == completion.finish_reason
            assert each.logprobs == pytest.approx(completion.logprobs[kept:], abs=1e-5)


@pytest.mark.parametrize(("name", "options"), [(name, each) for name, each in DRAFTERS if name != "draft_model"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_which_rounds_have_drafts_changes_nothing(
    made: Callable,
    target: PreTrainedModel,
    draft: PreTrainedModel,
    ask: Callable,
    name: str,
    options: dict[str, Any],
    temperature: float,
) -> None:
    """Chosen at random, where a run's clock would."""

    class Chance(Worth):
        def drafts(self, rows: int) -> bool:
            return draw.random() < 0.6

    draw, drafter = random.Random(0), made(name, options, draft)
    requests = ask(16, temperature=temperature)
    expected = [each.token_ids for each in decode(target, requests, Plain(), STOP)[0]]
    decode(target, requests, drafter, STOP)  # what learns has learned
    decoder = Decoder(target, drafter, STOP, worth=Chance())
    decoder.enter(requests)
    rows = list(decoder.rows)
    while decoder.rows:
        decoder.round()
    assert [tuple(row.sampled) for row in rows] == expected
    assert 0 < decoder.counts.asked < decoder.counts.trees
    assert decoder.counts.drafted


@pytest.mark.parametrize(("name", "options"), DRAFTERS)
def test_log_probs_are_the_targets(
    made: Callable,
    oracle: PreTrainedModel,
    target: PreTrainedModel,
    draft: PreTrainedModel,
    ask: Callable,
    name: str,
    options: dict[str, Any],
) -> None:
    """Of every token, under the processed distribution, to 1e-5: from a plain pass over the whole completion."""
    requests = ask(16, temperature=0.8, min_p=0.05)
    done, _ = decode(target, requests, made(name, options, draft), STOP)
    for request, each in zip(requests, done, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([[*request.prompt_ids, *each.token_ids]])
            p = (oracle(ids).logits[0, len(request.prompt_ids) - 1 : -1] / 0.8).softmax(-1)
        p = torch.where(p >= 0.05 * p.max(-1, keepdim=True).values, p, 0.0)
        expected = (p / p.sum(-1, keepdim=True)).log().gather(1, torch.tensor(each.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(each.logprobs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "options"), DRAFTERS)
def test_a_completion_does_not_depend_on_what_it_is_decoded_with(
    made: Callable,
    target: PreTrainedModel,
    draft: PreTrainedModel,
    ask: Callable,
    name: str,
    options: dict[str, Any],
) -> None:
    requests = ask(6)
    together, _ = decode(target, requests, made(name, options, draft), STOP)
    for request, expected in zip(requests, together, strict=True):
        assert decode(target, [request], made(name, options, draft), STOP)[0][0].token_ids == expected.token_ids


def test_any_precision_is_read_by_the_same_code(
    target: PreTrainedModel, oracle: PreTrainedModel, wild: type, ask: Callable
) -> None:
    """bfloat16: the log-probs of what it says are those of a plain pass, as near as two orders of summation are."""
    requests = ask(8)
    drafter = wild({request.seed: decode(target, [request], Plain(), STOP)[0][0].token_ids for request in requests})
    done, counts = decode(deepcopy(oracle).bfloat16(), requests, drafter, STOP)
    assert counts.accepted > 0
    for request, each in zip(requests, done, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([[*request.prompt_ids, *each.token_ids]])
            plain = deepcopy(oracle).bfloat16()(ids).logits[0, len(request.prompt_ids) - 1 : -1].float().log_softmax(-1)
        expected = plain.gather(1, torch.tensor(each.token_ids)[:, None])[:, 0]
        assert float((torch.tensor(each.logprobs) - expected).abs().mean()) < 0.1


# -- where it ends --------------------------------------------------------------------------------------------------------


def truthful(truth: dict[int, Sequence[int]], depth: int = 6) -> Drafter:
    """What is true, as far as there is room, beyond a stop id too."""

    class Truthful(Drafter):
        def propose(self, rows: Sequence[Row]) -> list[Tree]:
            return [Tree.chain([row.ids[-1], *truth[row.request.seed][row.drawn :][: min(depth, row.room)]]) for row in rows]

    return Truthful()


def test_a_stop_id_in_the_middle_of_a_branch_ends_the_completion(
    target: PreTrainedModel, ask: Callable, plainly: Callable
) -> None:
    requests = ask(12, temperature=0)
    unstopped = {request.seed: plainly(request, []) for request in requests}
    stops = {unstopped[requests[0].seed][3], unstopped[requests[1].seed][8]}
    done, counts = decode(target, requests, truthful(unstopped), stops)
    for request, each in zip(requests, done, strict=True):
        assert each.token_ids == plainly(request, stops)
    assert len(done[0].token_ids) <= 4
    assert done[0].finish_reason == "stop"
    assert counts.accepted < counts.drafted


@pytest.mark.parametrize("name", OPTIONS)
def test_the_end_of_the_context_ends_the_completion(
    made: Callable,
    target: PreTrainedModel,
    draft: PreTrainedModel,
    ask: Callable,
    plainly: Callable,
    name: str,
) -> None:
    """The context is 64 tokens; prompts of 52 to 63, and no limit of their own."""
    drafter = made(name, OPTIONS[name][0], draft)
    requests = [
        replace(request, prompt_ids=(request.prompt_ids * 64)[: 52 + 11 * (i % 2)])
        for i, request in enumerate(ask(4, temperature=0, max_new_tokens=1000))
    ]
    for _ in range(2):
        done, _ = decode(target, requests, drafter, [])
        for request, each in zip(requests, done, strict=True):
            assert each.token_ids == plainly(request, [])
            assert len(request.prompt_ids) + len(each.token_ids) == 64
            assert each.finish_reason == "length"


def test_requests_that_leave_nothing_to_decode_are_refused(target: PreTrainedModel) -> None:
    def asked(prompt: int, **kwargs: Any) -> Request:
        return Request("p7", 0, 0, (1,) * prompt, Sampling(**kwargs))

    for request in (asked(64), asked(0)):
        with pytest.raises(UserError, match=f"p7: a prompt of {len(request.prompt_ids)} tokens leaves nothing to decode"):
            decode(target, [request], Plain(), [])
    with pytest.raises(UserError, match="without a tokenizer nothing stops at strings"):
        decode(target, [asked(3, stop=("\n",))], Plain(), [])


# -- rows come and go -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), DRAFTERS)
def test_rows_enter_while_others_are_under_way(
    made: Callable,
    target: PreTrainedModel,
    draft: PreTrainedModel,
    ask: Callable,
    plainly: Callable,
    name: str,
    options: dict[str, Any],
) -> None:
    requests = ask(10, temperature=0)
    waiting = [
        replace(request, sampling=replace(request.sampling, max_new_tokens=3 + 2 * i)) for i, request in enumerate(requests)
    ]
    expected = {request.seed: plainly(request, STOP) for request in waiting}
    decoder, done = Decoder(target, made(name, options, draft), STOP), list[Row]()
    while waiting or decoder.rows:
        if waiting:
            decoder.enter([waiting.pop() for _ in range(min(3, len(waiting)))])
        done += decoder.round()
    assert {row.request.seed: tuple(row.sampled) for row in done} == expected


def test_a_drafter_sees_the_targets_hidden_states(
    oracle: PreTrainedModel, target: PreTrainedModel, ask: Callable, wild: type
) -> None:
    """Those of every token that the target has read, once and in their order."""

    class Watching(wild):  # type: ignore[misc,valid-type]
        def begin(self, rows: Sequence[Row], hidden: Sequence[torch.Tensor]) -> None:
            for row, states in zip(rows, hidden, strict=True):
                seen[row] = [states]

        def observe(self, rows: Sequence[Row], paths: Sequence[Sequence[int]], read: Read) -> None:
            for row, path, hidden in zip(rows, paths, read.hidden, strict=True):
                seen[row].append(hidden[list(path)])

        def forget(self, row: Row) -> None:
            forgotten.append(row)

    seen: dict[Row, list[torch.Tensor]] = {}
    forgotten: list[Row] = []
    requests = ask(8, temperature=0)
    truth = {request.seed: decode(target, [request], Plain(), STOP)[0][0].token_ids for request in requests}
    decode(target, requests, Watching(truth), STOP)
    assert set(forgotten) == set(seen)
    for row, states in seen.items():
        with torch.inference_mode():
            expected = oracle(torch.tensor([row.ids]), output_hidden_states=True).hidden_states[-1][0]
        found = torch.cat(states)
        assert len(row.ids) - 1 <= len(found) <= len(row.ids)  # a stop id that was drafted has been read, too
        torch.testing.assert_close(found, expected[: len(found)], atol=2e-5, rtol=1e-4)


def test_counts_are_of_what_happened(target: PreTrainedModel, ask: Callable, plainly: Callable) -> None:
    requests = [replace(request, sampling=Sampling(temperature=0, max_new_tokens=15)) for request in ask(3)]
    truth = {request.seed: plainly(request, []) for request in requests}
    _, counts = decode(target, requests, truthful(truth, depth=4), [])
    assert (counts.tokens, counts.target_forwards, counts.drafted, counts.accepted) == (45, 3, 36, 36)
    assert 0 < counts.draft_seconds < counts.seconds
    assert decode(target, requests, Plain(), [])[1].target_forwards == 15


# -- broken drafters ------------------------------------------------------------------------------------------------------

HALF = torch.full((24,), 1 / 24)
BROKEN: dict[str, tuple[Callable[[Row], Any], str]] = {
    "raises": (lambda row: 1 // 0, "ZeroDivisionError: integer division or modulo by zero"),
    "beyond the vocabulary": (lambda row: Tree.chain([row.ids[-1], 24]), "the token 24; the target's vocabulary has 24"),
    "negative": (lambda row: Tree.chain([row.ids[-1], -1]), "the token -1"),
    "too deep": (lambda row: Tree.chain([row.ids[-1]] * (row.room + 2)), "deep; the row has room for 3"),
    "another root": (lambda row: Tree.chain([row.ids[-1] ^ 1]), "grows from token"),
    "malformed": (lambda row: Tree([row.ids[-1], 1], [-1, 1]), "node 1 of a tree has the parent 1"),
    "ragged": (lambda row: Tree([row.ids[-1], 1], [-1]), "2 tokens and 1 parents"),
    "no tree": (lambda row: [row.ids[-1]], "a list where a Tree is due"),
    "q of another vocabulary": (lambda row: Tree([row.ids[-1], 1], [-1, 0], {0: HALF[:20]}), r"the shape \(20,\), not \(24,\)"),
    "q that sums to 2": (lambda row: Tree([row.ids[-1], 1], [-1, 0], {0: HALF * 2}), "is no distribution"),
    "q that is not a number": (lambda row: Tree([row.ids[-1], 1], [-1, 0], {0: HALF * torch.nan}), "is no distribution"),
    "q below 0": (
        lambda row: Tree([row.ids[-1], 1], [-1, 0], {0: torch.eye(24)[1] * 2 - torch.eye(24)[2]}),
        "is no distribution",
    ),
    "not drawn from q": (lambda row: Tree([row.ids[-1], 1], [-1, 0], {0: torch.eye(24)[2]}), "a token of probability 0"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_drafter_stops_the_decoding_by_its_name(target: PreTrainedModel, how: str) -> None:
    """In its second row, and in its second round."""
    make, told = BROKEN[how]

    class Broken(Drafter):
        def propose(self, rows: Sequence[Row]) -> list[Tree]:
            return [make(row) if row.tokens and row.request.seed else Tree.chain(row.ids[-1:]) for row in rows]

    requests = [Request("p", i, i, (1, 2), Sampling(max_new_tokens=5)) for i in range(2)]
    with pytest.raises(UserError, match=f"^the drafter Broken failed: .*{told}"):
        decode(target, requests, Broken(), [])


@pytest.mark.parametrize("hook", ["begin", "observe", "forget"])
def test_a_hook_that_raises_does_too(target: PreTrainedModel, hook: str, ask: Callable) -> None:
    class Broken(Plain):
        pass

    def broken(*args: object) -> None:
        raise RuntimeError("out of order")

    setattr(Broken, hook, broken)
    with pytest.raises(UserError, match="the drafter Broken failed: RuntimeError: out of order"):
        decode(target, ask(2), Broken(), [])


def test_a_tree_for_every_row(target: PreTrainedModel, ask: Callable) -> None:
    class Short(Plain):
        def propose(self, rows: Sequence[Row]) -> list[Tree]:
            return super().propose(rows)[1:]

    with pytest.raises(UserError, match="the drafter Short failed: ValueError: it proposed 2 trees for 3 rows"):
        decode(target, ask(3), Short(), [])


@pytest.mark.parametrize("name", ["draft_model", "gsd"])
def test_a_draft_model_must_hold_what_the_target_does(
    made: Callable,
    target: PreTrainedModel,
    ask: Callable,
    make_model: Callable,
    name: str,
) -> None:
    short = make_model(0, 24, context=16)
    with pytest.raises(UserError, match=r"can have .* tokens; the draft model's context is 16"):
        decode(target, ask(2), made(name, {}, short), [])
    other = make_model(0, 30)
    with pytest.raises(UserError, match=r"failed: .*(the shape \(30,\), not \(24,\)|vocabulary has 24)"):
        decode(target, ask(16), made(name, {"children": 30} if name == "gsd" else {}, other), [])
