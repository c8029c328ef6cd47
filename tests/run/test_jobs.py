"""A job from recipe to summary with real parts on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import rlcore
from rlcore import jobs
from rlcore.errors import UserError
from rlcore.protocols import Reward
from rlcore.recipe.load import load
from rlcore.types import Invalid, Scored

EVAL = "eval={data: {name: chain, split: test, count: 6}, samples: 2}"


class Moody(Reward):
    """Cannot judge every other completion."""

    verifiable = True

    def score(self, groups, state):
        return [Invalid("moody") if c.sample % 2 else Scored(1.0) for group in groups for c in group.completions]


@pytest.fixture
def launch(tiny: Path, tmp_path: Path) -> Callable[..., dict]:
    def run(recipe: str, *overrides: str) -> dict:
        small = [f"model={tiny}", f"output={tmp_path / 'run'}", "threads=1", "data.count=20"]
        jobs.run(load([recipe, *small, *overrides]), resume=False)
        summary: dict = json.loads((tmp_path / "run/summary.json").read_text())
        return summary

    return run


def test_a_summary_says_what_it_is_about(launch: Callable, tiny: Path) -> None:
    shape = "rollout={prompts_per_step: 2, samples: 2, max_new_tokens: 8, engine: {batch_size: 3}}"
    summary = launch("quickstart", "steps=1", "eval=null", shape)
    assert summary["model"] == str(tiny)
    assert summary["recipe"] == "quickstart"
    assert summary["rlcore"] == rlcore.__version__
    assert summary["engine"] == {"name": "transformers", "batch_size": 3}


def test_an_evaluation_in_a_run_keeps_to_the_recipes_max_invalid_fraction(launch: Callable) -> None:
    with pytest.raises(UserError, match=r"6 of 12 completions could not be graded, .*max_invalid_fraction 0.3: 6 x moody"):
        launch("quickstart", "steps=1", EVAL, f"rewards=[{{name: '{__name__}:Moody'}}]", "algorithm.max_invalid_fraction=0.3")
