"""Drafters of trees in the transformers engine: what it says is what it says without one, token for token, with the same seeds.
`draft_model` alone draws its drafts at random: sampled, its completions are other ones, of the same distribution (which
`tests/rollout/decoding/test_distribution` proves of its core)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlcore import plugins
from rlcore.errors import UserError
from rlcore.models import ModelSpec, configuration
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL, Anytime
from rlcore.run.metrics import Mean, values
from rlcore.types import Completion, Prefix, Request, Sampling, seed_from
from rollout.anytime import AnytimeEngine, Forced
from rollout.decoding import heads
from rollout.decoding.drafter import Drafter, Row
from rollout.decoding.tree import Tree
from rollout.engines.transformers import Transformers
from rollout.tree import TreeEngine
from tests.rollout.test_contract import expected_logprobs, going_on, interrupted, updating, weights
from trainers.plan import plan

MATCHED = ["ngram", "history", "gsd", "heads"]  # drafts that are no random draws
CASES = [(name, temperature) for name in MATCHED for temperature in (0.0, 1.0)] + [("draft_model", 0.0)]


def sharpened(spec: ModelSpec, folder: Path, noise: float, tokenizer: PreTrainedTokenizerBase) -> ModelSpec:
    """A model under which some tokens are a hundred times as likely as others, but for so much noise."""
    model = spec.load()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                size = 2.0 if "embed" in name else 1.3
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return replace(spec, location=str(folder))


@pytest.fixture(scope="module")
def sharp(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> ModelSpec:
    return sharpened(tiny_spec, tmp_path_factory.mktemp("sharp"), 0.0, tokenizer)


@pytest.fixture(scope="module")
def noisy(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> ModelSpec:
    return sharpened(tiny_spec, tmp_path_factory.mktemp("noisy"), 0.01, tokenizer)


@pytest.fixture(scope="module")
def options(sharp: ModelSpec, noisy: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What drafters need to be told."""
    config, folder = configuration(sharp.location), tmp_path_factory.mktemp("heads") / "firp"
    heads.save(heads.make(config, "firp", {}), "firp", {}, folder)
    model = {"model": noisy.location}
    return {"gsd": model, "draft_model": model, "heads": {"folder": str(folder), "refresh": 2, "learning_rate": 1e-2}}


@pytest.fixture(scope="module")
def start(
    sharp: ModelSpec, options: dict[str, dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> Callable[..., Transformers]:
    """An engine with the drafter of that name, or with this one, or without."""

    def started(drafter: str | Drafter | None = None, batch_size: int = 16) -> Transformers:
        if isinstance(drafter, str):
            drafter = plugins.bind("rollout.drafters", drafter, options.get(drafter, {}))()
        stops, always = [tokenizer.eos_token_id], drafter is not None  # so that no clock decides what is tested
        return Transformers(sharp, tokenizer, stops, batch_size=batch_size, drafter=drafter, always_draft=always)

    return started


@cache
def asked(temperature: float) -> list[Request]:
    """Some prompts come again; stop strings, forced prefixes and limits of any length between."""
    draw, requests = random.Random(0), []
    for i in range(20):
        stop = ("7", "ab") if i % 3 == 1 else ()
        sampling = Sampling(
            temperature=temperature, max_new_tokens=8 + 3 * (i % 7), stop=stop, top_p=0.9 if i % 5 == 4 else 1.0
        )
        forced = tuple(draw.randrange(5, 40) for _ in range(5)) if i % 4 == 3 else ()
        prefix = Prefix(forced, (-1.0,) * len(forced), (0,) * len(forced), (1,) * len(forced))
        prompt = (5 + i % 6, 6, 7, 8) if i % 6 else (5,)
        requests.append(Request(f"p{i}", i, seed_from("trees", i), prompt, sampling, prefix))
    return requests


@pytest.fixture(scope="module")
def plainly(start: Callable) -> Callable[[float], list[Completion]]:
    return cache(lambda temperature: start().generate(asked(temperature)))


def assert_same(found: Sequence[Completion], expected: Sequence[Completion]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert replace(one, logprobs=()) == replace(other, logprobs=())


# -- what is sampled -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize(("name", "temperature"), CASES)
def test_completions_are_those_without_a_drafter(
    start: Callable, plainly: Callable, name: str, temperature: float, batch_size: int
) -> None:
    """Tokens, log-probs, finish reasons, texts; the second time by what was learned of the first."""
    expected, engine = plainly(temperature), start(name, batch_size)
    for _ in range(2):
        assert_same(engine.generate(asked(temperature)), expected)
    told = engine.metrics()
    assert told["drafter/accepted"].total > 0
    sampled = sum(len(c.token_ids) - len(r.prefix.token_ids) for c, r in zip(expected, asked(temperature), strict=True))
    assert told["drafter/tokens_per_pass"].total == 2 * sampled
    assert told["drafter/tokens_per_pass"].count < 2 * sampled
    assert values(engine.metrics()) == {}  # told once


def around(engine: Transformers, how: str) -> TreeEngine | AnytimeEngine:
    """What grows trees of completions, or cuts thoughts at budgets."""
    if how == "tree":
        return TreeEngine(engine, leaves=4, segment=5, first=2, branches=2)
    thoughts = Anytime(budgets=[4, 9], summaries=2, summary_tokens=5, ends_thought="#### ")
    return AnytimeEngine(engine, engine.tokenizer, thoughts, Forced(cut=(9, 8), ended=(8,)))


@pytest.mark.parametrize("how", ["tree", "anytime"])
@pytest.mark.parametrize("name", ["history", "ngram"])
def test_trees_and_budgets_are_those_without_a_drafter(start: Callable, name: str, how: str) -> None:
    """The second time by what was learned of the first: segments of trees, and thoughts with what was forced after them."""
    sampling = Sampling(temperature=0.4, max_new_tokens=18)
    requests = [Request(f"p{i // 4}", i % 4, seed_from(how, i), (5 + i // 4, 6, 7), sampling) for i in range(12)]
    engine = start(name)
    expected, drafted = around(start(), how).generate(requests), around(engine, how)
    for _ in range(2):
        assert_same(drafted.generate(requests), expected)
    assert engine.metrics()["drafter/accepted"].total > 0


def test_a_clock_decides_which_rounds_have_drafts_and_nothing_else(
    sharp: ModelSpec, tokenizer: PreTrainedTokenizerBase, plainly: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts that take an hour are left out after a few rounds; unless they are drawn at random, as tokens depend on these."""

    class Slow(Drafter):
        def propose(self, rows: Sequence[Row]) -> list[Tree]:
            clock[0] += 3600
            return [Tree.chain([row.ids[-1], *[7] * min(3, row.room)]) for row in rows]

    class Drawing(Slow):
        draws = True

    def ticking() -> float:
        clock[0] += 1e-3
        return clock[0]

    clock = [0.0]
    monkeypatch.setattr("rollout.decoding.decode.time.perf_counter", ticking)
    for drafter, always, most in ((Slow(), False, 0.5), (Slow(), True, 1.0), (Drawing(), False, 1.0)):
        engine = Transformers(sharp, tokenizer, [tokenizer.eos_token_id], batch_size=4, drafter=drafter, always_draft=always)
        assert_same(engine.generate(asked(0.0)), plainly(0.0))
        used = engine.metrics()["drafter/used"].value
        assert used == 1.0 if most == 1.0 else 0 < used < most


def test_drafts_of_no_drafter_are_refused(sharp: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match=r"^always_draft: there is no drafter"):
        Transformers(sharp, tokenizer, [tokenizer.eos_token_id], always_draft=True)


def test_what_is_asked_ends_in_every_way(plainly: Callable, tokenizer: PreTrainedTokenizerBase) -> None:
    """Else the tests here would not see what they should."""
    kinds = set()
    for completion in (*plainly(0.0), *plainly(1.0)):
        eos = completion.token_ids[-1] == tokenizer.eos_token_id
        kinds.add("eos" if eos else completion.finish_reason)
    assert kinds == {"eos", "stop", "length"}


class Oracle(Drafter):
    """Says what will be said, as far as there is room, beyond an end too; after a wrong sibling of its first token."""

    def __init__(self, truth: dict[int, Sequence[int]]) -> None:
        self.truth = truth

    def propose(self, rows: Sequence[Row]) -> list[Tree]:
        return [self._tree(row) for row in rows]

    def _tree(self, row: Row) -> Tree:
        draft = [*self.truth[row.request.seed], 9, 9, 9][row.drawn :][: row.room]
        if not draft:
            return Tree.chain(row.ids[-1:])
        return Tree([row.ids[-1], 6 if draft[0] == 5 else 5, *draft], [-1, 0, 0, *range(2, 1 + len(draft))])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_end_in_the_middle_of_what_is_accepted_cuts_it_there(start: Callable, temperature: float) -> None:
    """The drafts are what would be said without stops, so that they go on behind an eos or a stop string."""
    requests = asked(temperature)
    unstopped = [replace(r, sampling=replace(r.sampling, stop=())) for r in requests]
    endless = start()
    endless.stop_ids = endless.stop_ids[:0]
    truth = {c.seed: c.token_ids for c in endless.generate(unstopped)}
    engine, expected = start(Oracle(truth)), start().generate(requests)
    assert_same(engine.generate(requests), expected)
    assert engine.metrics()["drafter/tokens_per_pass"].count == len(requests)  # one round, or it ended at once
    assert any(c.finish_reason == "stop" and len(c.token_ids) < len(truth[c.seed]) for c in expected)


@pytest.mark.parametrize("name", [*MATCHED, "draft_model"])
def test_completions_reach_the_end_of_the_context(start: Callable, name: str) -> None:
    plain, engine = start(), start(name)
    prompt = tuple(range(5, 45)) * (plain.context // 40)
    requests = [
        Request("long", i, i, prompt, Sampling(temperature=0, max_new_tokens=plain.context - len(prompt))) for i in (0, 1)
    ]
    expected = plain.generate(requests)
    assert_same(engine.generate(requests), expected)


def test_drafts_that_are_drawn_at_random_leave_the_log_probs_the_policys(start: Callable, sharp: ModelSpec) -> None:
    """And a completion does not depend on its batch."""
    requests, model = asked(1.0), sharp.load()
    together = start("draft_model").generate(requests)
    for request, completion in zip(requests, together, strict=True):
        kept = len(request.prefix.token_ids)
        expected = expected_logprobs(model, completion, request.sampling)
        torch.testing.assert_close(torch.tensor(completion.logprobs)[kept:], expected[kept:], atol=1e-5, rtol=0)
    assert_same(start("draft_model", 3).generate(requests[::-1]), together[::-1])


# -- interrupted, and with other weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "temperature"), CASES)
def test_what_was_interrupted_ends_as_if_nothing_had_happened(
    start: Callable, plainly: Callable, name: str, temperature: float
) -> None:
    """Rows under way and requests that still wait, three times over."""
    engine, requests = start(name, 6), asked(temperature)
    done: list[Completion] = []
    while requests:
        engine.submit(requests)
        for _ in range(3 if len(done) < len(plainly(temperature)) - 4 else 99):
            done += engine.poll()
        partial = engine.interrupt()
        assert not engine.busy
        assert {c.finish_reason for c in partial} <= {"interrupted"}
        requests = going_on(partial)
    assert_same(sorted(done, key=lambda c: c.sample), plainly(temperature))


@pytest.mark.parametrize("name", ["history", "draft_model", "heads"])
def test_drafts_are_verified_by_the_weights_served_now(start: Callable, sharp: ModelSpec, name: str) -> None:
    """Those of a newer policy, with which what was under way goes on. History keeps what it knows of the older one's."""
    other: PreTrainedModel = sharp.load()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    plain, engine = start(), start(name)
    requests = asked(0.0)
    partial = interrupted(engine, requests)
    for each in (plain, engine):
        each.sync(updating(1, weights(other)))
    assert_same(engine.generate(going_on(partial)), plain.generate(going_on(partial)))
    engine.generate(requests)
    for each in (plain, engine):
        each.sync(updating(2, weights(other)))
    engine.metrics()
    assert_same(engine.generate(requests), plain.generate(requests))
    if name == "history":
        assert engine.metrics()["drafter/accepted"].value > 0.3


# -- what is refused -----------------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[Callable[[Row], Any], str]] = {
    "raises": (lambda row: 1 // 0, "ZeroDivisionError"),
    "beyond the vocabulary": (lambda row: Tree.chain([row.ids[-1], 1 << 20]), "the token 1048576"),
    "too deep": (lambda row: Tree.chain([row.ids[-1]] * (row.room + 2)), "the row has room for"),
    "malformed": (lambda row: Tree([row.ids[-1], 1], [-1, 1]), "node 1 of a tree has the parent 1"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_drafter_is_named(start: Callable, how: str) -> None:
    """When it has worked for a round."""
    make, told = BROKEN[how]

    class Broken(Drafter):
        def propose(self, rows: Sequence[Row]) -> list[Tree]:
            return [make(row) if row.logprobs else Tree.chain(row.ids[-1:]) for row in rows]

    with pytest.raises(UserError, match=f"^the drafter Broken failed: .*{told}"):
        start(Broken()).generate(asked(1.0))


def test_a_draft_model_of_another_vocabulary_is_refused(
    sharp: ModelSpec, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    other = sharp.load()
    other.resize_token_embeddings(other.config.vocab_size + 8)
    other.save_pretrained(tmp_path)
    drafter = plugins.bind("rollout.drafters", "gsd", {"model": str(tmp_path)})()
    with pytest.raises(UserError, match="a drafter needs one of the same tokenizer"):
        Transformers(sharp, tokenizer, [1], drafter=drafter)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["rollout.drafter={name: compressed, methods: rtn}"],
            "transformers verifies no drafts of compressed; it does those of ",
        ),
        (
            ["rollout.engine=vllm", "rollout.drafter={name: draft_model, model: small}"],
            "vllm verifies no drafts of draft_model; it does those of compressed, gsd, history, ngram$",
        ),
        (["rollout.drafter=histroy"], "did you mean 'history'"),
        (["rollout.drafter={name: ngram, dept: 3}"], "no option 'dept'; did you mean 'depth'"),
        (["rollout.drafter={name: ngram, least: 4, most: 3}"], "'ngram': least 4 is more than most 3"),
        (["rollout.drafter=gsd"], "needs the option 'model'"),
        (["rollout.drafter={name: gsd, model: ./nowhere}"], "model folder './nowhere' does not exist"),
        (["rollout.drafter={name: history, probable: 0}"], "probable cannot be 0"),
    ],
)
def test_what_cannot_draft_is_refused_with_the_recipe(overrides: list[str], message: str) -> None:
    recipe = load(["quickstart", "data.count=20", "eval=null", *overrides]).recipe
    assert isinstance(recipe, RL)
    with pytest.raises(UserError, match=message):
        plan(recipe)


def test_an_engine_without_a_drafter_tells_nothing(start: Callable) -> None:
    engine = start()
    engine.generate(asked(0.0)[:2])
    assert engine.metrics() == {}


def test_the_counts_are_of_what_happened(start: Callable) -> None:
    requests = [Request(f"p{i}", i, i, (5, 6), Sampling(temperature=0, max_new_tokens=9)) for i in range(3)]
    truth = {c.seed: c.token_ids for c in start().generate(requests)}
    assert {len(tokens) for tokens in truth.values()} == {9}  # else change the prompt
    engine = start(Oracle(truth))
    engine.generate(requests)
    assert engine.metrics() == {
        "drafter/accepted": Mean(24, 27),
        "drafter/tokens_per_pass": Mean(27, 3),
        "drafter/used": Mean(3, 3),
    }
