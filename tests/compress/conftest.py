"""A tiny model, rows to look at, and a way to do methods to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from compress.calibration import Calibration
    from compress.compressed import CompressedModel
    from rlcore.models import ModelSpec

Done = Callable[..., "CompressedModel"]


@pytest.fixture(scope="session")
def calibration(tiny_spec: ModelSpec) -> Calibration:
    import torch

    from compress.calibration import Calibration

    dense = tiny_spec.load().eval()
    rows = torch.randint(3, 50, (8, 24), generator=torch.Generator().manual_seed(0))
    return Calibration(rows, lambda: dense, rows_at_once=4)


@pytest.fixture
def done(tiny_spec: ModelSpec, calibration: Calibration) -> Done:
    """`done(("rtn", {"bits": 4}), …)`: the tiny model after these methods."""
    import torch

    from compress.compressed import CompressedModel
    from compress.method import fit
    from rlcore import plugins

    def do(*methods: tuple[str, Mapping[str, Any]], dtype: torch.dtype = torch.float32) -> CompressedModel:
        made = [(name, options, plugins.bind("compress", name, options)()) for name, options in methods]
        return fit(CompressedModel(tiny_spec.load().eval(), dtype), made, calibration, ["lm_head"])

    return do
