"""Which weights the pruners leave out, and what SparseGPT makes up for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compress.calibration import Inputs
from compress.formats.sparse import Sparse, sparse
from compress.prune.sparsegpt import Sparsegpt
from compress.pruning import mask_of_pattern, mask_of_share
from rlcore import plugins
from rlcore.errors import UserError


def problem() -> tuple[Tensor, Tensor]:
    """A matrix and inputs of it of which the one says much of the other, as those of language models do."""
    torch.manual_seed(0)
    return torch.randn(16, 32), torch.randn(500, 12) @ torch.randn(12, 32) + 0.1 * torch.randn(500, 32)


def output_error(weight: Tensor, pruned: Tensor, x: Tensor) -> float:
    return float((x @ (weight - pruned).T).square().sum() / (x @ weight.T).square().sum())


def held(name: str, weight: Tensor, x: Tensor, **options: object) -> Sparse:
    class Model:
        dtype = torch.float32

    method = plugins.bind("compress", name, options)()
    gram = x.T @ x if method.looks_at == "gram" else x.square().sum(0)
    found = method.hold(weight, None, Inputs(gram, len(x)), torch.float32)
    assert isinstance(found, Sparse)
    return found


def test_a_pattern_keeps_the_largest_of_each_run_along_its_axis() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    assert mask_of_pattern(weight, (1, 2), "in").int().tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]
    assert mask_of_pattern(weight, (1, 2), "out").int().tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]


def test_a_share_is_left_out_of_each_row() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]])
    assert mask_of_share(weight, 0.5).int().tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]


def test_wanda_counts_a_weight_by_its_input() -> None:
    weight, x = torch.tensor([[3.0, 2.0]]), torch.tensor([[1.0, 2.0], [1.0, -2.0]])
    assert held("wanda", weight, x, share=0.5).mask().tolist() == [[False, True]]
    assert held("magnitude", weight, x, share=0.5).mask().tolist() == [[True, False]]


@pytest.mark.parametrize("options", [{"pattern": [2, 4]}, {"share": 0.5}])
def test_sparsegpt_loses_less_of_what_comes_out(options: dict) -> None:
    weight, x = problem()
    lost = {
        name: output_error(weight, held(name, weight, x, **options).decode(), x) for name in ("magnitude", "wanda", "sparsegpt")
    }
    assert lost["sparsegpt"] < 0.5 * min(lost["magnitude"], lost["wanda"])


def test_sparsegpt_is_the_best_refit_where_one_column_is_left_out() -> None:
    """With the last columns kept, leaving column 0 out must give the least-squares weights of the others: OBS is exact for one
    weight, and the columns to its right make up for it."""
    weight, x = problem()
    weight[:, 0] *= 1e-3  # the least important of each row
    method = Sparsegpt(share=1 / 32 + 1e-6, damping=1e-9)
    pruned = held_by(method, weight, x)
    assert not pruned[:, 0].any()
    refit = torch.linalg.lstsq(x[:, 1:].double(), (x @ weight.T).double()).solution.T
    torch.testing.assert_close(pruned[:, 1:].double(), refit, atol=1e-3, rtol=1e-3)


def held_by(method: Sparsegpt, weight: Tensor, x: Tensor) -> Tensor:
    class Model:
        dtype = torch.float32

    return method.hold(weight, None, Inputs(x.T @ x, len(x)), torch.float32).decode()  # type: ignore[arg-type]


def test_inputs_that_are_never_given_are_left_out() -> None:
    weight, x = problem()
    x[:, 5] = 0
    assert not held("sparsegpt", weight, x, share=0.5).decode()[:, 5].any()


@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize("pattern", [(2, 4), None])
def test_a_sparse_matrix_comes_back_with_its_mask(axis: str, pattern: tuple[int, int] | None) -> None:
    weight, _ = problem()
    mask = mask_of_pattern(weight.abs(), pattern, axis) if pattern else mask_of_share(weight.abs(), 0.3)  # type: ignore[arg-type]
    weight[mask & (torch.rand(weight.shape) < 0.1)] = 0  # kept, and zero: the mask does not forget them
    found = sparse(weight, mask, pattern, axis, torch.float32)  # type: ignore[arg-type]
    assert torch.equal(found.mask(), mask)
    assert torch.equal(found.decode(), weight * mask)


def test_bits_are_those_of_the_values_and_the_mask(done: Callable) -> None:
    pruned = done(("magnitude", {"pattern": [4, 8]}), dtype=torch.bfloat16)
    assert pruned.size().per_weight == pytest.approx(16 * 0.5 + 7 / 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "either `pattern`"),
        ({"pattern": [2, 4], "share": 0.5}, "either `pattern`"),
        ({"pattern": [4, 4]}, "leaves nothing out"),
        ({"pattern": [2, 32]}, "pattern cannot be"),
        ({"share": 1.5}, "share cannot be 1.5"),
    ],
)
def test_a_pruner_that_is_told_nonsense_is_refused(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plugins.bind("compress", "magnitude", options)()


def test_an_axis_that_the_pattern_does_not_divide_is_refused_by_name(done: Callable) -> None:
    with pytest.raises(
        UserError, match=r"model\.layers\.0\.self_attn\.q_proj\.weight: 64 inputs are no multiple of 15; .*keep_dense"
    ):
        done(("magnitude", {"pattern": [7, 15]}))
