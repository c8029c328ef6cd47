"""Grids and what rounding to them does to matrices; the errors are those measured for the method's description."""

from __future__ import annotations

import pytest
import torch

from compress import grids
from compress.activations import Activations, rounded
from compress.rounding import round_to_grid
from rlcore import plugins
from rlcore.errors import UserError


def gaussian() -> torch.Tensor:
    return torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))


def heavy_tailed() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.distributions.StudentT(3.0).sample((256, 1024))


def error(weight: torch.Tensor, grid: str, bits: int, run: int, **more: object) -> float:
    found = round_to_grid(weight, grid, bits, run, **more).decode()  # type: ignore[arg-type]
    return float((found - weight).square().sum() / weight.square().sum())


@pytest.mark.parametrize(
    ("grid", "bits", "run", "measured"),
    [("uniform", 4, 128, 0.0138), ("cube", 4, 128, 0.0249), ("uniform", 3, 128, 0.075), ("cube", 3, 128, 0.150)],
)
def test_errors_on_gaussian_weights(grid: str, bits: int, run: int, measured: float) -> None:
    """Rounding to nearest beats cube roots where tails are light and runs short."""
    assert error(gaussian(), grid, bits, run) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(("bits", "uniform", "cube"), [(4, 0.143, 0.044), (8, 8.7e-4, 1.3e-4)])
def test_cube_roots_win_on_heavy_tails_in_whole_rows(bits: int, uniform: float, cube: float) -> None:
    """By the factor that was measured; the error itself hangs on which outliers are drawn."""
    found = [error(heavy_tailed(), grid, bits, 0) for grid in ("uniform", "cube")]
    assert found[0] / found[1] == pytest.approx(uniform / cube, rel=0.5)


def test_cube_root_levels_are_cubes() -> None:
    assert (grids.levels("cube", 4) * 343).round().tolist() == [q**3 for q in range(-7, 8)]


def test_nf4_has_sixteen_levels_with_zero_and_the_published_neighbours_of_it() -> None:
    table = grids.levels("nf4", 4)
    assert (len(table), table[0], table[7], table[-1]) == (16, -1.0, 0.0, 1.0)
    assert table[[1, 6, 8]].tolist() == pytest.approx([-0.6961928, -0.0910500, 0.0795803], abs=1e-6)


@pytest.mark.parametrize("grid", ["uniform", "cube", "nf4"])
def test_a_level_is_its_own_nearest(grid: str) -> None:
    table = grids.levels(grid, 4)
    assert grids.nearest_code(table, grid, 4).tolist() == list(range(len(table)))


def test_bits_are_those_of_codes_and_scales() -> None:
    held = round_to_grid(gaussian(), "uniform", 4, 128)
    assert {name: tensor.nbytes for name, tensor in held.tensors()} == {
        "codes": 256 * 1024 // 2,
        "scales": 256 * 8 * 2,
    }


def test_clipping_lowers_the_error_and_a_row_of_zeros_stays_zero() -> None:
    weight = gaussian()
    weight[3] = 0
    clips = plugins.find("compress", "clipped").clips
    assert error(weight, "uniform", 3, 0, clips=clips) < 0.8 * error(weight, "uniform", 3, 0)
    assert not round_to_grid(weight, "uniform", 4, 0).decode()[3].any()


def test_what_cannot_be_rounded_is_refused() -> None:
    with pytest.raises(UserError, match="rows of 1024 weights are no multiple of runs of 100"):
        round_to_grid(gaussian(), "uniform", 4, 100)
    with pytest.raises(UserError, match="did you mean 'cube'"):
        grids.levels("cubes", 4)
    with pytest.raises(UserError, match="not of 3"):
        grids.levels("nf4", 3)
    with pytest.raises(UserError, match="bits cannot be 9"):
        plugins.bind("compress", "rtn", {"bits": 9})
    for value in (1e5, float("inf"), float("nan")):
        with pytest.raises(UserError, match="has no scale in float16"):
            round_to_grid(torch.tensor([[1.0, value]]), "uniform", 4, 0)


def test_activations_are_rounded_a_token_at_a_time() -> None:
    x = gaussian()[:4]
    x[0] *= 1000
    found = rounded(x, Activations("uniform", 8))
    assert ((found - x).abs().amax(1) <= x.abs().amax(1) / 254 * 1.001).all()
    assert (found != x).any()
