"""The toy world: arithmetic, strategies, and the truth of every step."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.data.sources.chain import chain
from rlcore.errors import UserError
from rlcore.toy.world import STRATEGIES, Chain, label_steps, parse_chain, sample_chain, write

EXAMPLE = Chain(3, (("+", 5), ("-", 9)))  # 3+5-9: 3 → 8 → 9


def truths(solution: str) -> list[bool]:
    return [step.correct for step in label_steps(EXAMPLE, solution)]


def test_the_documented_example() -> None:
    assert EXAMPLE.text == "3+5-9=?"
    assert EXAMPLE.values == (3, 8, 9)
    rng = random.Random(0)
    assert write(EXAMPLE, "direct", rng) == "#### 9"
    assert write(EXAMPLE, "terse", rng) == "8\n9\n#### 9"
    assert write(EXAMPLE, "steps", rng) == "3+5=8\n8-9=9\n#### 9"
    assert write(EXAMPLE, "verbose", rng) == "3+5=8\ncheck 8-5=3\n8-9=9\ncheck 9+9=8\n#### 9"


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("3+5=8\n8-9=9\n#### 9", [True, True, True]),
        ("3+5=6\n6-9=7\n#### 7", [False, False, False]),  # what follows from a wrong value is wrong
        ("3+5=6\nwait\n3+5=8\n8-9=9\n#### 9", [False, True, True, True, True]),  # the repair is right
        ("8\n9\n#### 9", [True, True, True]),
        ("3+5=8\ncheck 8-5=3\n8-9=9\n#### 9", [True, True, True, True]),
        ("3+5=8\ncheck 8-5=4\n#### 9", [True, False, True]),  # a wrong check; a right answer all the same
        ("8-9=9", [False]),  # right arithmetic in the wrong place
        ("3+5=8\n8-9=9\n9+1=0\n#### 9", [True, True, False, True]),  # a step too many
        ("hello\n#### 8", [False, False]),
        ("check 8-5=3", [False]),  # nothing to check yet
    ],
)
def test_step_truth(solution: str, expected: list[bool]) -> None:
    assert truths(solution) == expected


@given(st.integers(0, 10_000), st.sampled_from(sorted(STRATEGIES)))
def test_strategies_are_true_where_they_should_be(seed: int, strategy: str) -> None:
    """Honest strategies have only true steps and the right answer; `wrong` and `misread` go wrong once and never recover;
    `corrected` and `reread` have exactly one false step and the right answer."""
    rng = random.Random(seed)
    drawn = sample_chain(rng, (1, 6))
    labels = [step.correct for step in label_steps(drawn, write(drawn, strategy, rng))]
    if strategy in ("wrong", "misread"):
        assert not labels[-1]
        assert labels == sorted(labels, reverse=True)
    elif strategy in ("corrected", "reread"):
        assert labels.count(False) == 1
        assert labels[-1]
    else:
        assert all(labels)
    assert parse_chain(drawn.text) == drawn


def test_splits_share_no_problem_and_shares_are_kept() -> None:
    train = chain(split="train", count=3000, strategies={"direct": 0.7, "steps": 0.3})
    test = chain(split="test", count=500)
    assert not {p.prompt for p in train} & {p.prompt for p in test}
    share = sum(p.meta["strategy"] == "direct" for p in train) / len(train)
    assert share == pytest.approx(0.7, abs=0.03)
    assert all(p.answer == str(parse_chain(p.prompt).answer) for p in train)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategies": {"direkt": 1.0}}, "did you mean 'direct'"),
        ({"split": "tests"}, "'chain' has no split 'tests'; did you mean 'test'"),
        ({"difficulty": [3, 2]}, "is not .low, high."),
    ],
)
def test_what_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chain(**options)
