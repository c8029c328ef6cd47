"""docs/length_rewards.md: every snippet is a layer that works behind what the page names, and no length reward is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlcore import plugins
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from tests.conftest import REPOSITORY
from trainers.plan import plan

PAGE = (REPOSITORY / "docs" / "length_rewards.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
[BEHIND] = re.findall(r"`rlcore train (.*?) FILE`", PAGE)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_snippet_is_a_layer(snippet: str, tmp_path: Path) -> None:
    layer = tmp_path / "layer.yaml"
    layer.write_text(snippet)
    shrunk = ["data={name: chain, count: 20}", "eval=null", "checkpoint.keep_best=null"]
    recipe = load([*BEHIND.split(), *shrunk, str(layer)]).recipe
    assert isinstance(recipe, RL)
    asked = plan(recipe)
    asked.rewards.close()
    assert len(asked.rewards.components) == 2


def test_every_length_reward_is_told_and_has_a_snippet() -> None:
    """And each says of itself that it is one."""
    there = {name for name, module in plugins.names("rewards").items() if module.startswith("rewards.length.")}
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == there
    assert {name for name in there if any(name in snippet for snippet in SNIPPETS)} == there
    assert {name for name in plugins.names("rewards") if getattr(plugins.find("rewards", name), "reads_length", False)} == there
