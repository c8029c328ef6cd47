"""docs/process_rewards.md: every snippet is a layer that works behind the quickstart, and no credit is left out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from rewards.credit import Credit
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from tests.conftest import REPOSITORY
from trainers.plan import plan

PAGE = (REPOSITORY / "docs" / "process_rewards.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_snippet_is_a_layer(snippet: str, tmp_path: Path) -> None:
    layer = tmp_path / "layer.yaml"
    layer.write_text(snippet)
    recipe = load(["quickstart", "data.count=20", "eval=null", str(layer)]).recipe
    assert isinstance(recipe, RL)
    asked = plan(recipe)
    asked.rewards.close()
    assert len(asked.rewards.components) == 2


def test_every_credit_is_told() -> None:
    told = {name for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert told - {"credit"} == set(get_args(Credit))
