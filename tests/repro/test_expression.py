"""Claims: what can be said, what is refused, and when one holds, against t-intervals worked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.errors import UserError
from rlcore.repro.expression import parse
from rlcore.repro.intervals import interval

VALUES = {("accuracy_after", "dr_grpo"): 0.75, ("accuracy_before", "dr_grpo"): 0.5, ("samples", "grpo"): 0.0}


def test_intervals_by_hand() -> None:
    """1, 2, 3: s = 1, so 2 ± 4.3027 / √3 = 2 ± 2.4841. 0, 1: s = 1/√2, so 0.5 ± 12.7062 / 2."""
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((-0.4841, 4.4841), abs=1e-4)
    assert interval([0.0, 1.0]) == pytest.approx((-5.8531, 6.8531), abs=1e-4)
    assert interval([0.3, 0.3, 0.3]) == pytest.approx((0.3, 0.3))
    assert interval([0.3]) is None
    assert interval([]) is None
    assert interval([1.0, None, 3.0]) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12))
def test_an_interval_is_about_the_mean(values: list[float]) -> None:
    found = interval(values)
    assert found is not None
    low, high = found
    assert math.isfinite(low)
    assert low <= high
    assert (low + high) / 2 == pytest.approx(math.fsum(values) / len(values), abs=1e-6)


def test_a_claim_is_evaluated_as_it_is_written() -> None:
    def at(text: str) -> float | None:
        return parse(text).at(lambda metric, arm: VALUES.get((metric, arm)))

    assert at("accuracy_after[dr_grpo] - accuracy_before[dr_grpo] > 0") == 0.25
    assert at("accuracy_before[dr_grpo] - 2 * (accuracy_after[dr_grpo] + 1) > -1") == -3.0
    assert at("-accuracy_after[dr_grpo] / accuracy_before[dr_grpo] < 1") == -1.5
    assert at("accuracy_after[dr_grpo] / samples[grpo] < 1") is None  # divides by 0
    assert at("samples_to_target[dr_grpo] < 1") is None  # no value
    assert parse("a[x] / b[y_z] < 1").terms == [("a", "x"), ("b", "y_z")]


@pytest.mark.parametrize(
    ("text", "per_seed", "holds"),
    [
        ("a[x] > 0", [3.0, 4.0, 5.0], True),  # 4 ± 2.48
        ("a[x] < 0", [3.0, 4.0, 5.0], False),
        ("a[x] > 0", [-3.0, -4.0, -5.0], False),
        ("a[x] < 7", [3.0, 4.0, 5.0], True),
        ("a[x] < 6", [3.0, 4.0, 5.0], None),  # 6 lies within
        ("a[x] > 0", [1.0, 2.0, 3.0], None),  # so does 0, though every seed is above it
        ("a[x] > 0", [5.0], None),
        ("a[x] > 0", [5.0, 5.0, None], None),  # never reached by one seed
        ("a[x] > 0", [0.2, 0.2], True),
        ("a[x] > 0.5", [0.2, 0.2], False),
        ("a[x] > 0", [0.0, 0.0], None),  # no difference at all
    ],
)
def test_a_claim_holds_where_the_whole_interval_is_on_its_side(
    text: str, per_seed: list[float | None], holds: bool | None
) -> None:
    assert parse(text).holds(per_seed) is holds


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a[x]", "not one comparison"),
        ("a[x] >= 0", "not one comparison"),
        ("0 < a[x] < 1", "not one comparison"),
        ("a[x] > 0 and b[x] > 0", "not one comparison"),
        ("a[x] > b[x]", r"bring b\[x\] to the left"),
        ("1 > 0", "about no arm"),
        ("a[x] ** 2 > 0", r"'a\[x\] \*\* 2' is none of"),
        ("abs(a[x]) > 0", r"'abs\(a\[x\]\)' is none of"),
        ("a > 0", "'a' is none of"),
        ("a['x'] > 0", "is none of"),
        ("a[x].real > 0", "is none of"),
        ("a[x] + True > 0", "'True' is none of"),
        ("+a[x] > 0", "is none of"),
        ("a[x] > 1e999", "is none of"),
        ("a[x] > 1 / 0", "divides by 0"),
        ("a[x >", "cannot be read"),
    ],
)
def test_anything_else_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        parse(text)
