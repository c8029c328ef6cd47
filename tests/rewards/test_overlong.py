"""The reward `overlong` against DAPO's eq. 13 (arXiv 2503.14476), worked by hand with the paper's L_max and L_cache."""

from __future__ import annotations

import pytest

from rewards.length.overlong import Overlong
from rlcore.errors import UserError
from rlcore.plugins import bind, find
from rlcore.types import Completion, Group, Problem, Sampling, Scored


def group(*lengths: int) -> Group:
    completions = [
        Completion("p", 0, 0, (1,), (2,) * n, (1,) * n, (0.0,) * n, (0,) * n, Sampling(), "stop", "text") for n in lengths
    ]
    return Group(Problem("p", "", ""), completions)


@pytest.mark.parametrize(
    ("length", "value"),
    [
        (0, 0.0),
        (16384, 0.0),
        (16385, -1 / 4096),
        (17408, -0.25),
        (18432, -0.5),
        (20479, -4095 / 4096),
        (20480, -1.0),
        (20481, -1.0),
        (40000, -1.0),
    ],
)
def test_equation_13(length: int, value: float) -> None:
    """Nothing up to 16384, the whole factor from 20480, a straight line between."""
    for factor in (1.0, 0.5):
        reward = Overlong(max_tokens=20480, buffer=4096, factor=factor)
        (score,) = reward.score([group(length)], None)
        assert score == Scored(factor * value, f"{length} tokens" if value else "")


def test_groups_in_order() -> None:
    reward = Overlong(max_tokens=4, buffer=4)
    scores = reward.score([group(1, 2), group(3)], None)
    assert [score.value for score in scores if isinstance(score, Scored)] == [-0.25, -0.5, -0.75]


@pytest.mark.parametrize(("buffer", "why"), [(0, "greater than 0"), (-1, "greater than 0"), (101, "at most max_tokens")])
def test_a_buffer_that_does_not_fit_is_refused(buffer: int, why: str) -> None:
    with pytest.raises(UserError, match=f"buffer .*{why}"):
        bind("rewards", "overlong", {"max_tokens": 100, "buffer": buffer})()


def test_recipes_find_it_by_name() -> None:
    assert find("rewards", "overlong") is Overlong
