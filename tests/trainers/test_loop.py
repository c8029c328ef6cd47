"""The loop with real parts on a tiny model: it runs, resumes to the bit, and stops as the recipe says."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlcore import jobs
from rlcore.errors import UserError
from rlcore.protocols import StatefulReward
from rlcore.recipe.load import load
from rlcore.run.folder import Interrupted, Run
from rlcore.run.metrics import Mean
from rlcore.types import Scored

EVAL = "eval={every: 2, data: {name: chain, split: test, count: 6}, samples: 2}"


@pytest.fixture
def launch(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run the quickstart recipe, shrunk, in a folder of its own; returns the folder."""

    def run(name: str, *overrides: str, resume: bool = False) -> Path:
        folder = tmp_path / name
        small = [
            f"model={tiny}",
            f"output={folder}",
            "threads=1",
            "steps=4",
            "data.count=60",
            "rollout.prompts_per_step=4",
            "rollout.samples=3",
            "rollout.max_new_tokens=12",
            "checkpoint.every=1",
            EVAL,
        ]
        jobs.run(load(["quickstart", *small, *overrides]), resume)
        return folder

    return run


def metrics(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/") and k != "tokens_per_second"} for row in rows]


def test_a_run_leaves_everything_behind(launch: Callable) -> None:
    folder = launch("run")
    assert [row["step"] for row in metrics(folder)] == [0, 1, 2, 2, 3, 4, 4]
    ledger = pq.read_table(folder / "ledger" / "step-000003.parquet").to_pylist()
    assert len(ledger) == 12
    assert {row["component"] for row in ledger} == {"answer"}
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("accuracy_before", "accuracy_after", "accuracy_before_best_temperature", "greedy_accuracy_after", "wall_s"):
        assert isinstance(summary[key], float)
    assert summary["steps"] == 4
    assert "<html" in (folder / "report.html").read_text()
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-3", "step-4"]


class Crash(Exception):
    pass


@pytest.mark.parametrize("when", ["before the ledger", "after the log", "inside the checkpoint"])
@pytest.mark.parametrize("extra", [[], ["rewards=[answer, {name: 'test_loop:Counting'}]"]], ids=["plain", "stateful"])
def test_a_broken_run_resumes_to_the_bit(
    launch: Callable, monkeypatch: pytest.MonkeyPatch, when: str, extra: list[str]
) -> None:
    """Metrics, ledger and weights of a run that broke in step 3 and was resumed equal those of an unbroken one."""
    extra = [e.replace("test_loop:", f"{__name__}:") for e in extra]
    expected = launch("unbroken", *extra)
    target = {"before the ledger": "ledger", "after the log": "checkpoint"}.get(when)
    if target:
        original = getattr(Run, target)

        def crash(self: Run, step: int, *args: object) -> None:
            if step == 3:
                raise Crash
            original(self, step, *args)

        monkeypatch.setattr(Run, target, crash)
    else:
        import trainers.learner as learner_module

        save = learner_module.save_file

        def half(state: dict, path: Path) -> None:
            if "step-3" in str(path):
                raise Crash
            save(state, path)

        monkeypatch.setattr(learner_module, "save_file", half)
    with pytest.raises(Crash):
        launch("broken", *extra)
    monkeypatch.undo()
    folder = launch("broken", *extra, resume=True)
    assert metrics(folder) == metrics(expected)
    for step in (3, 4):
        name = f"ledger/step-{step:06d}.parquet"
        assert pq.read_table(folder / name).equals(pq.read_table(expected / name))
    weights = "checkpoints/step-4/policy/learner.safetensors"
    assert (folder / weights).read_bytes() == (expected / weights).read_bytes()


class Counting(StatefulReward):
    """Pays the number of batches it has seen: wrong after a resume unless its state comes back."""

    def initial_state(self) -> int:
        return 0

    def score(self, groups, state):
        return [Scored(float(state)) for group in groups for _ in group.completions]

    def update(self, graded, state):
        return state + 1, {"seen": Mean(state, 1)}


def test_ctrl_c_finishes_the_step_checkpoints_and_says_how_to_go_on(
    launch: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = Run.ledger

    def press(self: Run, step: int, rows: list) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        original(self, step, rows)

    monkeypatch.setattr(Run, "ledger", press)
    with pytest.raises(Interrupted, match=r"stopped after step 2; go on with: rlcore train .* --resume"):
        launch("run", "checkpoint.every=100")
    assert (tmp_path / "run/checkpoints/step-2").exists()
    monkeypatch.undo()
    launch("run", "checkpoint.every=100", resume=True)
    assert metrics(tmp_path / "run") == metrics(launch("other"))


def test_a_run_is_not_overwritten(launch: Callable) -> None:
    launch("run")
    with pytest.raises(UserError, match="holds a run already: add --resume"):
        launch("run")


def test_resuming_with_another_recipe_is_refused(launch: Callable) -> None:
    launch("run")
    with pytest.raises(UserError, match="was started with another optimizer"):
        launch("run", "optimizer.learning_rate=1", resume=True)


def test_a_finished_run_goes_on_with_more_steps(launch: Callable) -> None:
    launch("run", "steps=2")
    folder = launch("run", "steps=4", resume=True)
    assert metrics(folder)[-1] == metrics(launch("straight"))[-1]


@pytest.mark.parametrize(
    ("stop", "last"),
    [("stop.max_tokens=150", 2), ("stop={metric: eval/accuracy, patience: 1}", 2), ("stop.max_hours=1.0e-9", 1)],
)
def test_stop_rules_end_a_run_early(launch: Callable, stop: str, last: int) -> None:
    """A tiny random model says about 12 × 8 tokens a step and does not improve."""
    folder = launch("run", "steps=50", stop)
    assert metrics(folder)[-1]["step"] <= last + 1
    assert (folder / "summary.json").exists()


def test_the_best_checkpoint_is_kept(launch: Callable) -> None:
    folder = launch("run", "checkpoint={every: 1, keep_last: 1, keep_best: length/mean}")
    lengths = {row["step"]: row["length/mean"] for row in metrics(folder) if "length/mean" in row}
    best = max(lengths, key=lambda step: lengths[step])
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {f"step-{best}", "step-4"}


def test_dynamic_sampling_trains_on_mixed_groups_only(launch: Callable) -> None:
    folder = launch("run", "algorithm.dynamic_sampling={max_rounds: 3}")
    for row in metrics(folder):
        if "groups/trained" in row:
            assert row["groups/trained"] <= 4
            assert row["groups/degenerate"] == 0


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.kl={estimator: k3, coefficient: 0.1}"],
        ["algorithm.importance_sampling_cap=2.0", "rollout.top_p=0.9"],
        ["lora={rank: 4}"],
        ["algorithm={advantage: rloo, aggregate: sequence_mean, mask_truncated: true}"],
        ["dtype=bfloat16"],
        ["update={minibatches: 2, epochs: 2, gradient_checkpointing: true}"],
        ["rewards=[answer, {name: format, weight: 0.2, gate: {component: answer, at_least: 1}}]"],
        ["rewards=[answer, {name: overlong, max_tokens: 12, buffer: 4}]"],
        ["eval=null"],
        ["log=[tensorboard]"],
    ],
    ids=lambda o: o[0].split("=")[0],
)
def test_what_a_recipe_can_choose_runs(launch: Callable, overrides: list[str]) -> None:
    folder = launch("run", "steps=2", *overrides)
    assert metrics(folder)[-1]["step"] == 2
