"""A model that is other for a while: what is changed and by how much, and that nothing of it stays."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from compress.altered import Change, altered
from compress.calibration import matrices
from compress.perturbation import perturbed, perturbed_matrix
from rlcore.errors import UserError
from rlcore.models import ModelSpec

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def weights_change(strength: float) -> Change:
    return Change(
        of_matrix=partial(perturbed_matrix, kind="gaussian", strength=strength, noise=torch.Generator().manual_seed(0))
    )


def inputs_change(strength: float) -> Change:
    return Change(of_inputs=partial(perturbed, kind="gaussian", strength=strength, noise=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("change", [weights_change(0.1), inputs_change(0.1)], ids=["weights", "inputs"])
@torch.no_grad()
def test_the_model_says_other_things_within_and_the_same_after(tiny_spec: ModelSpec, change: Change) -> None:
    model = tiny_spec.load().eval()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    said = model(IDS).logits
    with altered(model, matrices(model), change):
        assert not torch.equal(model(IDS).logits, said)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert torch.equal(model(IDS).logits, said)


def test_what_is_changed_and_what_is_not(tiny_spec: ModelSpec) -> None:
    model = tiny_spec.load().eval()
    weights = matrices(model, ["lm_head"])
    of = {name: weight for name, weight in weights.items() if ".0." in name}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with altered(model, of, weights_change(0.1)) as norms:
        changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        assert norms.weights.value == pytest.approx(0.1, rel=1e-5)
        assert norms.inputs.value is None
    assert changed == set(of)


@torch.no_grad()
def test_inputs_change_token_by_token_at_the_stated_norm(tiny_spec: ModelSpec) -> None:
    model = tiny_spec.load().eval()
    weights = matrices(model, ["lm_head"])
    name = next(iter(weights))
    module, given = model.get_submodule(name.removesuffix(".weight")), []

    def seen(inputs: Tensor) -> Tensor:
        given.append(inputs)
        return perturbed(inputs, "positive", 0.2, torch.Generator().manual_seed(0))

    with altered(model, {name: weights[name]}, Change(of_inputs=seen)) as norms:
        module.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
        model(IDS)
    before, after = given
    change = (after - before).norm(dim=-1) / before.norm(dim=-1)
    torch.testing.assert_close(change, torch.full_like(change, 0.2), rtol=1e-5, atol=0)
    assert norms.inputs.value == pytest.approx(0.2, rel=1e-5)
    assert norms.weights.value is None


def test_a_failure_is_told_by_the_matrix_and_leaves_the_model_as_it_was(tiny_spec: ModelSpec) -> None:
    model = tiny_spec.load().eval()
    weights = matrices(model, ["lm_head"])
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    last = list(weights)[-1]

    def refusing(matrix: Tensor) -> Tensor:
        if torch.equal(matrix, before[last]):
            raise UserError("it is too much")
        return matrix + 1

    with pytest.raises(UserError, match=rf"{last}: it is too much; choose"), altered(model, weights, Change(refusing)):
        raise AssertionError("it was changed")
    assert all(torch.equal(weight, before[name]) for name, weight in weights.items())
