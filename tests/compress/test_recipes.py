"""The shipped recipes of compression, on a tiny model and a few rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlcore import jobs
from rlcore.recipe.load import load

SMALL = ["calibration.rows=4", "calibration.length=32", "calibration.rows_at_once=2", "eval=null"]
PIPELINE = (
    "methods=[{name: sparsegpt, pattern: [4, 8]}, {name: mask_lora, steps: 1}, {name: mvq, codes: 8, width: 8}, "
    "{name: codewords, steps: 1}]"
)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("compress/mvq", [PIPELINE, *SMALL, "evaluated_on.count=5"]),
        ("compress/rtn", ["eval=null", "evaluated_on.count=5"]),
        ("compress/chain", [*SMALL, "evaluated_on.count=5"]),
        ("compress/smollm2", [*SMALL, "calibration.data={name: chain, count: 50, strategies: {steps: 1}}", "evaluated_on=[]"]),
    ],
)
def test_a_shipped_recipe_is_done(
    recipe: str, changes: list[str], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load([recipe, f"model={tiny}", "device=cpu", *changes])
    jobs.run(loaded, resume=False)
    assert json.loads(Path(loaded.recipe.folder, "summary.json").read_text())["bits_per_weight"] > 1
    assert Path(loaded.recipe.folder, "model", "compressed.safetensors").is_file()
