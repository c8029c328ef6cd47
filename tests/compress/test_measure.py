"""What a model says of texts, remembered."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from compress.measure import Text, logprobs, measure, remembered
from rlcore.models import ModelSpec

TEXTS = [Text((5, 6, 7), (8, 9)), Text((5, 6), (7, 8, 9, 10, 11)), Text((9,), (4,))]


def test_a_changed_model_is_held_against_what_it_said_before(tiny_spec: ModelSpec) -> None:
    model, dense = tiny_spec.load().eval(), tiny_spec.load().eval()
    said = remembered(model, TEXTS)
    assert measure(model, TEXTS, said)["divergence"] == 0
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.down_proj.weight.mul_(3)
    changed = measure(model, TEXTS, said)
    assert changed == pytest.approx(measure(model, TEXTS, partial(logprobs, dense)))
    assert changed["divergence"] > 0
