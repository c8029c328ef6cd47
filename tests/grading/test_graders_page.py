"""docs/graders.md: it has every grader, and its snippets are layers whose data and rewards are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rewards.compose import Rewards
from rlcore.data.mixture import load as load_problems
from rlcore.grading.graders import AT_LENGTH, AT_ONCE
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "graders.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```json (\S+)\n(.*?)```", PAGE, re.DOTALL))
SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_it_has_every_grader() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == AT_ONCE.keys() | AT_LENGTH.keys()


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_snippet_is_a_layer(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "gym" in snippet:
        pytest.importorskip("reasoning_gym")
    monkeypatch.chdir(tmp_path)
    for name, text in {**FILES, "layer.yaml": snippet}.items():
        Path(name).write_text(text)
    recipe = load(["quickstart", "eval=null", "layer.yaml"]).recipe
    assert isinstance(recipe, RL)
    assert load_problems(recipe.data)
    Rewards(recipe.rewards, max_invalid_fraction=0.0).close()
