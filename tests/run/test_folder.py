"""A run's folder without a model: what a resumed run says and writes, what it warns of, and what is safe on disk."""

from __future__ import annotations

import io
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console as RichConsole

from rlcore.errors import UserError
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from rlcore.run import console
from rlcore.run.folder import Run, claim

TAUGHT = {"groups/trained": 4.0, "reward": 0.5, "tokens": 100.0}


class Weightless:
    """A learner that has nothing to keep."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Run]:
    """A run of the quickstart recipe with overrides, in the folder of that name."""

    def run(name: str = "run", *overrides: str) -> Run:
        recipe = load(["quickstart", f"output={tmp_path / name}", "checkpoint.every=1", *overrides])
        (tmp_path / name).mkdir(exist_ok=True)
        assert isinstance(recipe.recipe, RL)
        made = Run(recipe, steps=recipe.recipe.steps, keep=recipe.recipe.checkpoint, stop=recipe.recipe.stop)
        made.learners = {"policy": Weightless()}
        return made

    return run


def go(run: Run) -> None:
    """The loop, with a step that only reports."""
    step = run.restore()
    while run.goes_on(step):
        step += 1
        run.log(step, TAUGHT)
        run.checkpoint(step)


def test_a_resumed_run_with_no_steps_left_says_so(make: Callable, capsys: pytest.CaptureFixture) -> None:
    go(make("run", "steps=2"))
    assert "nothing left" not in capsys.readouterr().err
    go(make("run", "steps=2"))
    assert "nothing left to do: step 2 of 2 is done; to go on, raise steps=" in capsys.readouterr().err
    go(make("run", "steps=3"))
    assert "nothing left" not in capsys.readouterr().err


def test_a_resumed_run_that_a_stop_rule_ended_names_the_rule(make: Callable, capsys: pytest.CaptureFixture) -> None:
    go(make("run", "steps=9", "stop.max_tokens=150"))
    assert "stopping after step 2: 150 tokens are spent" in capsys.readouterr().err
    go(make("run", "steps=9", "stop.max_tokens=150"))
    assert "nothing left to train: 150 tokens are spent; to go on, raise that rule" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metrics", "warns"),
    [
        ({"groups/trained": 0.0}, True),
        ({"groups/trained": 4.0, "groups/degenerate": 1.0}, True),
        ({"groups/trained": 4.0, "groups/degenerate": 0.75}, False),
        ({"eval/accuracy": 0.5}, False),
    ],
)
def test_a_step_that_taught_nothing_is_warned_of(
    make: Callable, capsys: pytest.CaptureFixture, metrics: dict[str, float], warns: bool
) -> None:
    run = make("run", "stop.patience=null")
    run.restore()
    run.log(1, metrics)
    assert ("warning: this step had nothing to teach" in capsys.readouterr().err) == warns


def test_a_step_in_which_nothing_was_judged_lacks_the_watched_metric_and_goes_on(make: Callable) -> None:
    run = make("run", "checkpoint.keep_best=accuracy", "stop={metric: accuracy, patience: 2}")
    run.restore()
    run.log(1, {"groups/trained": 0.0, "tokens": 5.0})
    run.checkpoint(1)
    run.log(2, TAUGHT | {"accuracy": 0.5})
    run.log(3, {"groups/trained": 0.0, "tokens": 5.0})
    run.checkpoint(3)
    assert run.goes_on(3)
    assert (run.folder / "checkpoints/step-1").exists()


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_made(
    make: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # how Python marks what cannot be imported
    with pytest.raises(UserError, match="log: 'wandb' is not installed: pip install it"):
        make("run", "log=[wandb]")


def test_a_resumed_run_goes_on_in_the_same_wandb_run(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, which is not among the dependencies, notes how it was called."""
    opened: list[dict[str, Any]] = []
    stand_in = types.SimpleNamespace(init=lambda **settings: opened.append(settings), log=lambda metrics, step: None)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    go(make("run", "log=[wandb]", "steps=1"))
    go(make("run", "log=[wandb]", "steps=2"))
    go(make("other", "log=[wandb]", "steps=1"))
    first, resumed, other = opened
    assert first["resume"] == resumed["resume"] == "allow"
    assert first["id"] == resumed["id"] != other["id"]


def test_a_run_that_is_older_than_a_key_of_the_schema_can_be_resumed(make: Callable, tmp_path: Path) -> None:
    go(make("run", "steps=1"))
    overrides = ["quickstart", f"output={tmp_path / 'run'}", "checkpoint.every=1"]
    now = load(overrides)
    old = now.recipe.model_dump(mode="json")
    del old["trust_remote_code"], old["algorithm"]["mask_truncated"]
    (tmp_path / "run/recipe.yaml").write_text(yaml.safe_dump(old))
    with claim(now, resume=True):
        pass
    (tmp_path / "run/recipe.yaml").write_text(yaml.safe_dump(old))
    changed = load([*overrides, "algorithm.mask_truncated=true"])
    with pytest.raises(UserError, match="was started with another algorithm"), claim(changed, resume=True):
        pass


def test_a_resume_that_is_refused_leaves_the_recipe_of_the_run(make: Callable, tmp_path: Path) -> None:
    go(make("run", "steps=1"))
    kept = load(["quickstart", f"output={tmp_path / 'run'}", "checkpoint.every=1", "steps=1"]).to_yaml()
    (tmp_path / "run/recipe.yaml").write_text(kept)
    longer = load(["quickstart", f"output={tmp_path / 'run'}", "checkpoint.every=1", "steps=7"])
    with pytest.raises(UserError, match="out of memory"), claim(longer, resume=True):
        raise UserError("out of memory")
    assert (tmp_path / "run/recipe.yaml").read_text() == kept


def test_a_run_of_another_job_is_named_in_a_line(make: Callable, tmp_path: Path) -> None:
    go(make("run", "steps=1"))
    (tmp_path / "run/recipe.yaml").write_text(load(["quickstart"]).to_yaml())
    other = load(["sft_gsm8k", f"output={tmp_path / 'run'}"])
    with (
        pytest.raises(UserError, match="holds a run of job: rl: choose another folder with name=NAME"),
        claim(other, resume=True),
    ):
        pass


def test_what_a_checkpoint_counts_on_is_on_the_disk_before_it(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is flushed as long as it is when the checkpoint notes it down."""
    flushed: dict[int, int] = {}  # bytes by inode
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        status = os.fstat(descriptor)
        flushed[status.st_ino] = status.st_size
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    run = make()
    run.once("evaluation_before.json", dict)
    run.restore()
    run.log(1, TAUGHT)
    run.ledger(1, [{"problem_id": "p", "value": 1.0}])
    run.checkpoint(1)
    for name in ("metrics.jsonl", "ledger/step-000001.parquet", "evaluation_before.json"):
        path = run.folder / name
        assert flushed[path.stat().st_ino] == path.stat().st_size


def test_a_bar_beside_the_runs_own_is_on_the_same_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two displays on one terminal would overwrite each other's lines."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen, stderr = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(console, "TERMINAL", RichConsole(file=screen, force_terminal=True, width=100))
    training = console.Console("training", 5)
    training.start(2)
    with console.watched("evaluating", 10) as progress:
        progress(10)
    training.stop()
    assert "training" in screen.getvalue()
    assert "evaluating" in screen.getvalue()
    assert not stderr.getvalue()
