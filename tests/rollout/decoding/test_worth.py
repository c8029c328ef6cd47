"""Whether drafts are read is decided by a clock, which is made up here: what a round takes, and brings, is what a test says."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from rollout.decoding.worth import FIRST, SPENT, Worth

Round = tuple[float, int]  # seconds and tokens
PLAIN: Round = (1.0, 8)


def played(worth: Worth, rounds: int, drafted: Callable[[int], Round], plain: Round = PLAIN, rows: int = 8) -> list[bool]:
    """Which of so many rounds had drafts; `drafted` says what the i-th is like with them."""
    found = []
    for i in range(rounds):
        asking = worth.drafts(rows)
        worth.note(rows, asking, *(drafted(i) if asking else plain))
        found.append(asking)
    return found


def lost(found: list[bool], drafted: Round, plain: Round = PLAIN) -> float:
    """Of the seconds that rounds took, the share that the same tokens would not have taken in the cheaper kind."""
    rounds = [drafted if asking else plain for asking in found]
    cost = min(seconds / tokens for seconds, tokens in (drafted, plain))
    return 1 - cost * sum(tokens for _, tokens in rounds) / sum(seconds for seconds, _ in rounds)


@pytest.mark.parametrize("seconds", [1.05, 1.5, 3.5, 8.0])
@pytest.mark.parametrize("tokens", [8, 24])
def test_the_dearer_kind_costs_next_to_nothing(seconds: float, tokens: int) -> None:
    """Its first rounds apart, which no one can know before: what it adds is within the share that trying may take; and it is
    tried."""
    found = played(Worth(), 3000, lambda _: (seconds, tokens))[2 * FIRST :]
    assert lost(found, (seconds, tokens)) <= 1.1 * SPENT
    pays = seconds / tokens < PLAIN[0] / PLAIN[1]
    assert 0 < sum(asking != pays for asking in found) < 0.45 * len(found)


def test_drafts_that_come_to_pay_are_found_out() -> None:
    """As in the second epoch of a run, the first of which had no history; and again, when they cease to."""
    worth = Worth()
    assert sum(played(worth, 200, lambda _: (1.2, 8))[100:]) < 20
    assert all(played(worth, 200, lambda _: (1.5, 40))[100:-20]) or sum(played(worth, 100, lambda _: (1.5, 40))) > 90
    assert sum(played(worth, 200, lambda _: (1.2, 8))[100:]) < 20


def test_a_clock_that_shakes_does_not_turn_them_on_and_off() -> None:
    draw = random.Random(0)
    found = played(Worth(), 1000, lambda _: (1.5 * draw.uniform(0.7, 1.3), draw.randint(10, 34)))
    assert sum(a != b for a, b in pairwise(found[20:])) <= 60
    assert sum(found) > 930


def test_a_round_that_was_held_up_is_not_held_against_them() -> None:
    found = played(Worth(), 300, lambda i: (1000.0, 24) if i == 100 else (1.5, 24))
    assert sum(found[101:]) > 180


def test_batches_of_other_sizes_are_judged_apart() -> None:
    worth, found = Worth(), {4: 0, 64: 0}
    for _ in range(300):
        for rows, seconds in ((4, 1.5), (64, 20.0)):
            found[rows] += sum(played(worth, 2, lambda _, s=seconds, n=rows: (s, 3 * n), (1.0, rows), rows))  # type: ignore[misc]
    assert found[4] > 540
    assert found[64] < 60


def test_it_chooses_two_rounds_at_a_time() -> None:
    """What is carried along for a draft is there one round later."""
    found = played(Worth(), 500, lambda _: (1.2, 8))
    assert found[0::2] == found[1::2]
