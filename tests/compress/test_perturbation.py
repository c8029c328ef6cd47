"""Changes of vectors: all of one size, each of its own shape."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Generator, Tensor

from compress.perturbation import DIRECTIONS, perturbed, perturbed_matrix
from rlcore.errors import UserError
from rlcore.recipe.schema import Perturbation

KINDS = get_args(Perturbation)


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def heavy(*shape: int, seed: int = 0) -> Tensor:
    """Numbers of which few are far larger than the others."""
    return torch.randn(shape, generator=seeded(seed)) ** 3


def test_every_kind_that_a_recipe_may_name_is_there() -> None:
    assert {*DIRECTIONS, "clipping"} == set(KINDS)


@pytest.mark.parametrize("strength", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_changes_by_the_stated_norm(kind: Perturbation, strength: float) -> None:
    matrix = heavy(512, 1024)
    change = (perturbed_matrix(matrix, kind, strength, seeded(1)) - matrix).double().norm()
    assert float(change / matrix.double().norm()) == pytest.approx(strength, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_each_of_several_vectors_changes_by_the_norm_of_its_own(kind: Perturbation) -> None:
    vectors = heavy(2, 3, 64) * torch.tensor([0.01, 1.0, 100.0])[:, None]
    change = (perturbed(vectors, kind, 0.1, seeded(1)) - vectors).double().norm(dim=-1)
    torch.testing.assert_close(change / vectors.double().norm(dim=-1), torch.full((2, 3), 0.1).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind: Perturbation) -> None:
    vectors = torch.stack([torch.zeros(8), heavy(8)])
    changed = perturbed(vectors, kind, 0.1, seeded(1))
    assert (changed[0] == 0).all()
    assert not torch.equal(changed[1], vectors[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: Perturbation) -> None:
    vector = heavy(100)
    one, same, other = (perturbed(vector, kind, 0.1, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert torch.equal(one, other) is (kind == "clipping")


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("gaussian", -0.05, 0.05),
        ("uniform", -0.05, 0.05),
        ("positive", 0.3, 1.0),
        ("negative", -1.0, -0.1),
        ("clipping", 0.3, 1.0),
    ],
)
def test_how_the_change_goes_with_the_magnitude(kind: Perturbation, low: float, high: float) -> None:
    vector = torch.randn(20_000, generator=seeded(0))
    change = perturbed(vector, kind, 0.1, seeded(1)) - vector
    assert low < float(torch.corrcoef(torch.stack([change.abs(), vector.abs()]))[0, 1]) < high


def test_sign_moves_every_entry_alike_and_uniform_within_bounds() -> None:
    vector = heavy(10_000)
    moved = (perturbed(vector, "sign", 0.1, seeded(1)) - vector).abs()
    assert float(moved.max() - moved.min()) < 1e-4 * float(moved.mean())
    spread = perturbed(vector, "uniform", 0.1, seeded(1)) - vector
    assert float(spread.abs().max() / spread.square().mean().sqrt()) == pytest.approx(3**0.5, rel=0.03)


def test_the_positive_kind_of_an_example() -> None:
    """δ = |w| ε: of equal ε what moves an entry is its magnitude, and the two kinds share their ε."""
    vector = torch.tensor([1.0, -2.0, 4.0])
    noise = torch.randn(3, generator=seeded(1))
    for kind, shape in (("gaussian", [1.0, 1.0, 1.0]), ("positive", [1.0, 2.0, 4.0]), ("negative", [3.0, 2.0, 0.0])):
        direction = torch.tensor(shape) * noise
        wanted = vector + 0.5 * vector.norm() * direction / direction.norm()
        torch.testing.assert_close(perturbed(vector, kind, 0.5, seeded(1)), wanted)  # type: ignore[arg-type]


def test_clipping_of_an_example_and_that_it_raises_nothing() -> None:
    """(3, 4, 0) has the norm 5: clipped at 3 it loses 1, a fifth."""
    torch.testing.assert_close(
        perturbed(torch.tensor([3.0, -4.0, 0.0]), "clipping", 0.2, seeded(0)), torch.tensor([3.0, -3, 0])
    )
    vector = heavy(1000)
    clipped = perturbed(vector, "clipping", 0.3, seeded(0))
    assert (clipped.abs() <= vector.abs()).all()
    assert (clipped * vector >= 0).all()


def test_clipping_cannot_reach_the_norm_itself() -> None:
    with pytest.raises(UserError, match="a strength of 1 cannot be reached"):
        perturbed(heavy(8), "clipping", 1.0, seeded(0))
