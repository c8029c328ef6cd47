"""The shipped recipes of process rewards, one after the other as their comments say, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlcore import jobs
from rlcore.recipe.load import load


@pytest.fixture
def launch(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs a recipe in `runs/` of an empty folder; its run folder."""
    monkeypatch.chdir(tmp_path)

    def go(recipe: str, *overrides: str) -> Path:
        loaded = load([recipe, f"model={tiny}", "threads=1", *overrides])
        jobs.run(loaded, resume=False)
        return Path(loaded.recipe.folder)

    return go


def test_a_policy_is_paid_by_the_reward_model_that_was_trained_before(launch: Callable[..., Path]) -> None:
    launch("prm_chain", "data.count=60", "epochs=1")
    small = ["steps=1", "eval=null", "rollout={prompts_per_step: 2, samples: 2, max_new_tokens: 8}"]
    folder = launch("pure_chain", "data.count=20", *small)
    [row] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert row["process/steps"] >= 1
    assert (folder / "checkpoints" / "step-1").is_dir()


def test_a_policy_learns_from_its_own_trees(launch: Callable[..., Path]) -> None:
    """A tiny model is never right, so every node is good enough."""
    trees = launch(
        "annotate_chain", "data.count=2", "search={name: full_tree, children: 2, depth: 1}", "rollout.max_new_tokens=8"
    )
    assert (trees / "trees.jsonl").exists()
    folder = launch("self_train_chain", "data.at_least=0")
    assert json.loads((folder / "summary.json").read_text())["examples"] >= 2


def test_a_hierarchical_reward_model_is_trained(launch: Callable[..., Path]) -> None:
    """PRM800K's file is not part of the project: `tests/data` reads it where it is."""
    folder = launch("hrm_prm800k", "data={name: chain_steps, count: 60}")
    assert json.loads((folder / "model" / "reward_model.json").read_text())["kind"] == "hrm"
