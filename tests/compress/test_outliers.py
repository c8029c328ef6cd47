"""Which weights of a matrix are its outliers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.formats.levels import Levels
from compress.formats.patched import Patched
from compress.outliers import Outliers, highest, scores
from compress.quantise.rtn import Rtn
from rlcore import plugins
from rlcore.errors import UserError

WEIGHT = torch.tensor([[1.0, 1.1, 1.0, 1.2], [1.0, -1.6, 1.0, 3.3]])  # mean 1
ROUNDED = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, -1.6, 0.0, 3.2]])


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def places(score: str, count: int, seed: int = 0) -> list[int]:
    found: list[int] = highest(scores(WEIGHT, ROUNDED, score, drawn(seed)), count / 8).tolist()  # type: ignore[arg-type]
    return found


def test_the_farthest_from_the_mean_and_the_worst_rounded() -> None:
    assert places("magnitude", 2) == [5, 7]  # 2.6 and 2.3 away; by |w| alone too, but not of four:
    assert places("magnitude", 4) == [1, 3, 5, 7]
    assert places("error", 2) == [3, 6]  # lost 0.2 and 1


def test_the_control_depends_on_its_seed_alone() -> None:
    assert places("random", 4, seed=1) == places("random", 4, seed=1) != places("random", 4, seed=2)


@pytest.mark.parametrize(("share", "count"), [(0.005, 1), (0.3, 2), (0.32, 3), (0.99, 8)])
def test_how_many(share: float, count: int) -> None:
    """⌊8·share + ½⌋, and never none."""
    assert len(highest(WEIGHT.abs(), share)) == count


def test_places_that_no_int32_can_name_are_refused() -> None:
    with pytest.raises(UserError, match=r"4294967296 weights are more than an int32 can count"):
        highest(torch.empty(1 << 16, 1 << 16, device="meta"), 0.5)


def held(weight: Tensor, score: str) -> tuple[Tensor, Tensor]:
    method = Outliers(Rtn(run=32), 0.01, score, seed=0)  # type: ignore[arg-type]
    patched = method.hold(weight, None, None, torch.float32)
    assert isinstance(patched.base, Levels)
    assert patched.places.dtype == torch.int32
    assert torch.equal(patched.decode(), patched.base.decode())  # Δ is 0
    return patched.places.long(), patched.base.decode()


def test_a_matrix_is_rounded_and_its_outliers_marked() -> None:
    weight = torch.randn(64, 64, generator=drawn(3))
    places, rounded = held(weight, "error")
    lost = (weight - rounded).abs().flatten()
    assert len(places) == 41
    assert lost[places].min() >= lost.sort().values[-41]
    others, _ = held(weight, "magnitude")
    assert set(others.tolist()) != set(places.tolist())


def test_what_is_held_along_the_other_axis_can_be_patched() -> None:
    """Its reconstruction is a transposed view."""
    weight = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    base = plugins.bind("compress", "magnitude", {"pattern": [2, 4], "axis": "out"})().hold(weight, None, None, torch.float32)
    patched = Patched(base.shape, base, torch.tensor([9], dtype=torch.int32), torch.tensor([0.5], dtype=torch.bfloat16))
    changed = patched.decode() - base.decode()
    assert changed[1, 1] == 0.5
    assert changed.count_nonzero() == 1
