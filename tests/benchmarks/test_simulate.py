"""A run on paper takes the time that a pencil finds, and keeps the bounds that the real one has."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from benchmarks.simulate import Prediction, SimulatedEngine, predict
from rlcore.protocols import Manifest, WeightUpdate
from rlcore.recipe.schema import Mode
from rlcore.types import Completion, Request, Sampling

SYNC, ONE_STEP_OFF = Mode(name="sync"), Mode(name="one_step_off")
ASYNC = {cap: Mode(name="async", cap=cap) for cap in (1, 2, 4)}
RNG = random.Random(0)
LONG_TAILED = [min(1000, round(100 * RNG.lognormvariate(0, 1)) + 1) for _ in range(500)]


def round_s(rows: int) -> float:
    return 0.01 + 0.001 * rows


def run(mode: Mode, *, lengths: list[int] = LONG_TAILED, workers: int = 1, **changes: Any) -> Prediction:
    settings: dict[str, Any] = dict(
        round_s=round_s, learn_s=lambda tokens: tokens / (200 * workers), sync_s=0.5, capacity=4, steps=16, samples=4
    )
    return predict(lengths, workers=workers, mode=mode, **settings | dict(prompts=2 * workers) | changes)


def engine(length: int, workers: int = 1, capacity: int = 4, read_s: float = 0.0) -> SimulatedEngine:
    return SimulatedEngine([length], round_s, 0.5, read_s, workers, capacity)


def requests(count: int) -> list[Request]:
    return [Request("p", k, k, (1, 2, 3), Sampling()) for k in range(count)]


# -- by hand -------------------------------------------------------------------------------------------------------------


def test_a_synchronous_run_takes_the_time_that_a_pencil_finds() -> None:
    """2 x 4 completions of 50 tokens on 4 rows are two waves of 50 rounds of 14 ms; then 400 tokens are learned from in 2 s and
    synced in 0.5 s, which comes once more at the start."""
    found = run(SYNC, lengths=[50], steps=4)
    assert found.seconds == pytest.approx(0.5 + 4 * (2 * 50 * 0.014 + 2 + 0.5))
    assert found.step_s == pytest.approx(1.4 + 2 + 0.5)
    assert found.tokens_per_s == pytest.approx(400 / 3.9)
    assert found.idle == pytest.approx(2.5 / 3.9)
    assert found.rows == pytest.approx(1.4 / 3.9)


@pytest.mark.parametrize("mode", [ONE_STEP_OFF, ASYNC[1]])
def test_sampling_ahead_hides_the_shorter_of_sampling_and_learning(mode: Mode) -> None:
    """Both rounds that may be begun are, so the first step waits for a mix of theirs; from then on a step is its 2 s of
    learning and 0.5 s of sync, in which 1.4 s of sampling are hidden."""
    found = run(mode, lengths=[50], steps=8)
    assert found.step_s == pytest.approx(2.5)
    assert found.staleness == pytest.approx(7 / 8)


def test_prompts_are_read_once_for_a_group_and_hold_the_rows_up() -> None:
    made = engine(10, read_s=0.1)
    made.submit(requests(4))
    assert len(made.poll()) == 4
    assert made.now == pytest.approx(3 * 0.1 + 10 * 0.014)


def test_more_requests_than_rows_wait_and_a_row_that_ends_is_filled() -> None:
    made = SimulatedEngine([10, 30], round_s, 0.5, 0.0, workers=1, capacity=2)
    made.submit(requests(3))  # 10, 30 and 10 tokens
    ended = []
    while made.busy:
        ended += [(c.sample, round(made.now, 6)) for c in made.poll()]
    assert ended == [(0, 10 * 0.012), (2, 20 * 0.012), (1, round(20 * 0.012 + 10 * 0.011, 6))]


# -- an engine as others -------------------------------------------------------------------------------------------------


def test_an_interrupted_completion_keeps_its_tokens_and_goes_on_with_new_weights() -> None:
    made = engine(50)
    made.submit(requests(6))  # one worker has room for five, four of them in rows
    made.advance(20.5 * 0.014)
    stopped = made.interrupt()
    assert [len(c.token_ids) for c in stopped] == [20, 20, 20, 20, 0, 0]
    assert {c.finish_reason for c in stopped} == {"interrupted"}
    assert not made.busy
    made.sync(WeightUpdate(Manifest(3, {}), []))
    done = made.generate([c.resumed() for c in stopped])
    assert [Counter(c.versions) for c in done] == [{0: 20, 3: 30}] * 4 + [{3: 50}] * 2
    for c in done:
        assert len(c.token_ids) == len(c.loss_mask) == len(c.logprobs) == len(c.versions) == 50


def test_what_ends_while_the_learner_works_comes_with_the_next_poll_or_interruption() -> None:
    made = engine(10)
    made.submit(requests(8))
    made.advance(15 * 0.014)
    assert made.now == pytest.approx(15 * 0.014)
    assert sorted(len(c.token_ids) for c in made.interrupt()) == [5] * 4 + [10] * 4


def test_no_work_is_done_twice_or_by_a_worker_that_has_no_row_for_it() -> None:
    made = SimulatedEngine(LONG_TAILED, round_s, 0.5, 0.0, workers=3, capacity=4)
    asked = requests(100)
    made.submit(asked)
    done: list[Completion] = []
    while made.busy:
        assert all(worker.load <= 5 for worker in made.workers)
        done += made.poll()
    assert sorted(c.seed for c in done) == [r.seed for r in asked]
    tokens = sum(len(c.token_ids) for c in done)
    sampled = sum(worker.rows_s for worker in made.workers) / 0.011  # no round is shorter than that of a row alone
    assert tokens <= sampled <= tokens * 0.014 / 0.011


# -- modes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 8])
def test_throughput_grows_with_the_cap_and_no_token_is_older_than_it(workers: int) -> None:
    found = {0: run(SYNC, workers=workers), **{cap: run(mode, workers=workers) for cap, mode in ASYNC.items()}}
    for cap, prediction in found.items():
        assert prediction.oldest == cap
        assert prediction.staleness <= cap
        assert prediction.seconds <= found[0].seconds
    assert found[0].staleness == 0
    assert found[4].seconds < found[1].seconds < 0.8 * found[0].seconds
    assert run(ONE_STEP_OFF, workers=workers).oldest == 1


@pytest.mark.parametrize("mode", [SYNC, ONE_STEP_OFF, ASYNC[2]])
def test_every_sampled_token_is_trained_on_once(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SimulatedEngine] = []
    begun = SimulatedEngine.__init__
    monkeypatch.setattr(SimulatedEngine, "__init__", lambda self, *a: (begun(self, *a), made.append(self))[0])
    found = run(mode, workers=2, round_s=lambda rows: 0.01)
    assert found.samples == 16 * 4 * 4
    sampled = sum(worker.rows_s for worker in made[0].workers) / 0.01
    lost = 8 * 16  # an interruption may waste what a row has of its next token
    assert found.tokens <= round(sampled, 6) <= found.tokens + (lost if mode.partial else 0)


def test_a_thousand_workers_run_through() -> None:
    found = run(ASYNC[2], workers=1024, steps=4, samples=2)
    assert found.samples == 4 * 1024 * 2 * 2
    assert found.oldest == 2
