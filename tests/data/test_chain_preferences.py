"""The toy world's preference pairs: whoever knows what decided them finds it in them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from rlcore.data.formats.chain_preferences import FACTORS, chain_preferences
from rlcore.data.preferences import Preference
from rlcore.errors import UserError
from rlcore.plugins import bind
from rlcore.toy.world import parse_chain

PURE = {"a": {"brief": 1}, "b": {"checked": 1}, "c": {"right": 1}, "d": {"repaired": 1}}


def text(pair: Preference) -> str:
    [message] = pair.prompt
    return message.content


def margin(pair: Preference) -> int:
    """By how much the better solution is ahead in what decided the pair."""
    chain = parse_chain(pair.meta["problem"])
    chosen, rejected = (FACTORS[pair.meta["factor"]](chain, answer) for answer in (pair.chosen, pair.rejected))
    return chosen - rejected


@pytest.mark.parametrize(
    ("factor", "chosen", "rejected"),
    [
        ("brief", "8\n#### 8", "3+5=8\n#### 8"),
        ("checked", "3+5=8\ncheck 8-5=3\n#### 8", "3+5=8\n#### 8"),
        ("right", "#### 8", "3+5=6\n#### 6"),
        ("repaired", "3+5=6\nwait\n3+5=8\n#### 8", "3+5=8\n#### 8"),
    ],
)
def test_a_factor_by_hand(factor: str, chosen: str, rejected: str) -> None:
    chain = parse_chain("3+5=?")
    assert FACTORS[factor](chain, chosen) > FACTORS[factor](chain, rejected)


def test_the_factor_that_is_told_is_what_decides_and_noise_turns_round() -> None:
    pairs = chain_preferences(count=2000, noise=0.25)
    assert all(margin(pair) < 0 if pair.meta["flipped"] else margin(pair) > 0 for pair in pairs)
    assert sum(pair.meta["flipped"] for pair in pairs) / 2000 == pytest.approx(0.25, abs=0.03)
    factors = Counter(pair.meta["factor"] for pair in pairs)
    assert factors["right"] / 2000 == pytest.approx((1 + 3 * 0.2) / 4, abs=0.03)
    assert factors["brief"] / 2000 == pytest.approx(0.8 / 4, abs=0.03)


@pytest.mark.parametrize("tied", [0.0, 0.5, 1.0])
def test_the_prompt_says_as_much_of_the_annotator_as_it_is_tied(tied: float) -> None:
    pairs = chain_preferences(count=2000, annotators=PURE, tied=tied)
    assert all(text(pair) == f"{pair.meta['source']} {pair.meta['problem']}" for pair in pairs)
    share = sum(pair.meta["source"] == pair.meta["annotator"] for pair in pairs) / 2000
    assert share == pytest.approx(tied + (1 - tied) / 4, abs=0.03)
    assert {count // 100 for count in Counter(text(pair)[0] for pair in pairs).values()} <= {4, 5}


def test_what_is_tied_flipped_and_marked_changes_nothing_else() -> None:
    plain = chain_preferences(count=50)
    noisy = chain_preferences(count=50, tied=0, noise=0.5, marked=True)
    for one, other in zip(plain, noisy, strict=True):
        flipped = other.meta["flipped"]
        assert (one.chosen, one.rejected) == ((other.rejected, other.chosen) if flipped else (other.chosen, other.rejected))
        assert text(other).endswith(" flip") == flipped
        assert text(one)[1:] == text(other).removesuffix(" flip")[1:]


def test_no_problem_is_in_both_splits() -> None:
    train, test = (chain_preferences(split=split, count=1000) for split in ("train", "test"))
    assert not {pair.meta["problem"] for pair in train} & {pair.meta["problem"] for pair in test}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotators": {"a": {"brif": 1}}}, "annotators cannot have 'brif'; did you mean 'brief'"),
        ({"strategies": {"stps": 1}}, "strategies cannot have 'stps'; did you mean 'steps'"),
        ({"strategies": {"direct": 1, "steps": 1}}, "no two of the strategies direct, steps differ in"),
        ({"noise": 1.5}, "noise cannot be 1.5"),
        ({"annotators": {}}, "annotators cannot be {}"),
        ({"split": "dev"}, "has no split 'dev'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bind("rlcore.data.formats", "chain_preferences", options)()
