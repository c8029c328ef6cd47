"""A shrunken experiment on a random model, from its file to the page; and runs that are done, changed, failing, interrupted."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import yaml

from rlcore.cli import repro as command
from rlcore.errors import UserError
from rlcore.repro import run as running
from rlcore.repro.experiment import Planned, plan, read

REPOSITORY = Path(__file__).parent.parent.parent
STEPS, PROMPTS, SAMPLES = 2, 2, 2


def shrunken(tiny: Path, **changes: object) -> dict:
    base = [
        "quickstart",
        "model={schooled}",
        f"steps={STEPS}",
        "data.count=40",
        f"rollout={{prompts_per_step: {PROMPTS}, samples: {SAMPLES}, max_new_tokens: 8}}",
        "eval={every: 1, data: {name: chain, split: test, count: 4}, samples: 2, temperatures: [0]}",
        "checkpoint.every=1",
    ]
    arms = {"grpo": ["algorithm.advantage=grpo"], "dr_grpo": ["algorithm.advantage=dr_grpo"]}
    models = {"schooled": ["toy/chain-steps", f"model={tiny}", "data.count=64"]}
    claims = {"uses_as_much": "samples[grpo] / samples[dr_grpo] > 0.5"}
    values = dict(title="Shrunken", about="Mechanics.", base=base, arms=arms, models=models, varies=["algorithm.advantage"])
    return values | {"seeds": [100, 101, 102], "claims": claims, "target": 0.9, "tried": "nothing"} | changes


pytestmark = pytest.mark.xdist_group("repro")  # what they look at is made once


@pytest.fixture(scope="module")
def home(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the experiment was run with its first two seeds."""
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "shrunken.yaml").write_text(yaml.safe_dump(shrunken(tiny), sort_keys=False))
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        command.run("shrunken.yaml", seeds=2, jobs=2, json_file="result.json")
        yield folder


def test_every_arm_ran_with_every_seed(home: Path, tiny: Path) -> None:
    result = json.loads((home / "result.json").read_text())
    assert result == json.loads((home / "docs/results/shrunken.json").read_text())
    assert result["seeds"] == [100, 101]
    assert result["command"] == "rlcore repro shrunken --seeds 2"
    assert result["claims"]["uses_as_much"]["holds"] is True
    assert result["claims"]["uses_as_much"]["per_seed"] == {"100": 1.0, "101": 1.0}
    for arm in ("grpo", "dr_grpo"):
        assert result["arms"][arm]["samples"]["per_seed"] == dict.fromkeys(("100", "101"), STEPS * PROMPTS * SAMPLES)
        assert result["arms"][arm]["greedy_accuracy_after"]["seeds"] == 2
        assert result["arms"][arm]["samples_to_target"] == dict(
            mean=None, low=None, high=None, seeds=0, per_seed={"100": None, "101": None}
        )
        assert result["curves"][arm]["100"]["samples"] == [0, 4, 8]
    folders = {"tiny": tiny, "schooled": next(home.glob("runs/repro/models/schooled-*/")) / "model"}
    assert result["models"] == {
        name: hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() for name, folder in folders.items()
    }


def test_no_path_of_this_machine_reaches_the_docs(home: Path, tiny: Path) -> None:
    written = [file for file in (home / "docs").rglob("*") if file.is_file()]
    assert {file.name for file in written} == {"results.md", "shrunken.json", "shrunken.svg"}
    for file in written:
        assert not any(str(place) in file.read_text() for place in (home, tiny, tiny.parent, REPOSITORY))


def test_what_is_done_is_not_done_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    page = (home / "docs/results.md").read_text()
    monkeypatch.setattr(subprocess, "Popen", refuse)
    command.run("shrunken.yaml", seeds=2, jobs=2, json_file="")
    assert (home / "docs/results.md").read_text() == page


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_the_others_stay(home: Path) -> None:
    others = [file for file in home.glob("runs/repro/shrunken/*/*/metrics.jsonl") if file.parent.parent.name != "grpo"]
    before = [file.stat().st_mtime_ns for file in others]
    folder = home / "runs/repro/shrunken/grpo/100"
    (folder / "summary.json").unlink()
    command.run("shrunken.yaml", seeds=2, jobs=2, json_file="")
    assert (folder / "summary.json").is_file()
    assert f"resumed from step {STEPS} in" in (folder.parent / "100.log").read_text()
    assert [file.stat().st_mtime_ns for file in others] == before


def test_a_folder_of_another_recipe_is_refused_by_name(home: Path, tiny: Path) -> None:
    other = shrunken(tiny)
    other["base"] += ["optimizer.learning_rate=1.0e-2", "steps=3"]
    (home / "other").mkdir()
    (home / "other" / "shrunken.yaml").write_text(yaml.safe_dump(other, sort_keys=False))
    with pytest.raises(UserError, match=r"shrunken/grpo/100 holds a run that differs in optimizer.learning_rate, steps"):
        command.run("other/shrunken.yaml", seeds=1, jobs=2, json_file="")


def test_runs_on_another_model_are_refused_by_name(home: Path, tiny: Path) -> None:
    other = shrunken(tiny)
    other["models"]["schooled"] += ["data.seed=3"]
    (home / "others").mkdir()
    (home / "others" / "shrunken.yaml").write_text(yaml.safe_dump(other, sort_keys=False))
    with pytest.raises(UserError, match=r"grpo/100 holds a run that differs in model: move it away"):
        command.run("others/shrunken.yaml", seeds=1, jobs=2, json_file="")


def test_a_run_of_other_code_is_refused_by_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers would be compared with those of the arms that are still to come."""
    with monkeypatch.context() as patched:
        patched.setattr(running, "SOURCES", {"rewards": "*.py"})
        with pytest.raises(UserError, match=r"schooled-\w+ holds a run of other code than this: move it away"):
            command.run("shrunken.yaml", seeds=1, jobs=2, json_file="")


def test_a_result_of_more_seeds_is_not_replaced(home: Path) -> None:
    before = (home / "docs" / "results" / "shrunken.json").read_text()
    with pytest.raises(UserError, match=r"shrunken\.json has 2 seeds and is not replaced by 1: move it away first"):
        command.run("shrunken.yaml", seeds=1, jobs=2, json_file="")
    assert (home / "docs" / "results" / "shrunken.json").read_text() == before


def test_more_seeds_than_there_are(home: Path) -> None:
    with pytest.raises(UserError, match="shrunken has 3 seeds"):
        command.run("shrunken.yaml", seeds=4, jobs=2, json_file="")


def test_reward_models_are_trained_and_then_measured(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = dict(
        title="Choices",
        about="Mechanics.",
        base=["prm_chain", f"model={tiny}", "data.count=60", "epochs=1"],
        arms={"prm": []},
        best_of_n=dict(
            policy=str(tiny),
            data={"name": "chain", "count": 3},
            n=[1, 2],
            separator="\n",
            controls={"truth": {"name": "chain_truth"}},
            max_new_tokens=6,
        ),
        seeds=[100],
        claims={"rises": "stepwise_2[prm] - stepwise_1[prm] > -1"},
        tried="nothing",
    )
    Path("choices.yaml").write_text(yaml.safe_dump(experiment))
    command.run("choices.yaml", seeds=None, jobs=1, json_file="result.json")
    result = json.loads(Path("result.json").read_text())
    assert list(result["arms"]) == ["prm", "truth", "pass", "majority"]
    assert result["arms"]["prm"]["auc"]["seeds"] == result["arms"]["truth"]["stepwise_2"]["seeds"] == 1
    assert result["curves"]["truth"]["100"]["n"] == [1, 2]
    assert len(result["models"][tiny.name]) == 64
    assert "## Choices" in Path("docs/results.md").read_text()


def test_arms_that_learn_from_pairs_are_measured_on_those_held_out(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped experiment, shrunken: two of its arms, with one seed."""
    monkeypatch.chdir(tmp_path)
    experiment = yaml.safe_load((REPOSITORY / "recipes" / "repro" / "lpc.yaml").read_text())
    experiment["base"] += [f"model={tiny}", "data.count=40", "evaluated_on.count=20"]
    experiment["arms"] = {arm: experiment["arms"][arm] for arm in ("dpo", "dpo_lpc")}
    experiment["claims"] = {"codes": "recovered[dpo_lpc] > 2"}
    Path("shrunken.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    command.run("shrunken.yaml", seeds=1, jobs=1, json_file="result.json")
    result = json.loads(Path("result.json").read_text())
    assert result["kind"] == "preferences"
    assert result["arms"]["dpo"]["accuracy"]["seeds"] == 1
    assert result["arms"]["dpo"]["recovered"]["seeds"] == 0
    assert 0 <= result["arms"]["dpo_lpc"]["recovered"]["mean"] <= 1
    assert result["curves"]["dpo"]["100"] == {}
    assert [len(values) for values in result["curves"]["dpo_lpc"]["100"].values()] == [20, 20, 20]
    page = Path("docs/results.md").read_text()
    assert "codes in use" in page
    assert "results/shrunken.svg" in page
    assert "repaired" in Path("docs/results/shrunken.svg").read_text()


def test_arms_are_looked_at_through_perturbations(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped experiment, shrunken: two of its arms, of which one has no quantisers, with one seed."""
    monkeypatch.chdir(tmp_path)
    experiment = yaml.safe_load((REPOSITORY / "recipes" / "repro" / "perturbation.yaml").read_text())
    experiment["base"] += [
        f"model={tiny}",
        "evaluated_on.count=4",
        "quantisers=[{name: rtn, bits: 4, run: 0, label: rtn_4_row}]",
    ]
    experiment["arms"] = {arm: experiment["arms"][arm] for arm in ("toy", "toy_activations")}
    experiment["varies"] = ["perturb", "quantisers"]
    experiment["claims"] = {
        "clipping": "kl_clipping[toy] / kl_gaussian[toy] > 0",
        "quantiser": "kl_rtn_4_row[toy_activations] > 0",
    }
    Path("shrunken.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    command.run("shrunken.yaml", seeds=1, jobs=2, json_file="result.json")
    result = json.loads(Path("result.json").read_text())
    assert result["kind"] == "sensitivity"
    assert result["claims"]["clipping"]["per_seed"]["100"] > 0
    assert result["claims"]["quantiser"]["per_seed"] == {"100": None}
    toy, activations = (result["arms"][arm] for arm in ("toy", "toy_activations"))
    assert [of["norm_positive"]["mean"] for of in (toy, activations)] == pytest.approx([0.1, 0.1], rel=1e-5)
    assert toy["kl_rtn_4_row"]["mean"] > 0
    assert activations["kl_rtn_4_row"]["seeds"] == 0
    assert result["curves"]["toy"]["100"]["strengths"] == [0.05, 0.1, 0.2]
    assert result["curves"]["toy"]["100"]["kl/gaussian"][1] == toy["kl_gaussian"]["per_seed"]["100"]
    page = Path("docs/results.md").read_text()
    assert "| changed by | toy" in page
    assert "the same with every seed" in page
    assert "Highest" not in page
    assert "rtn_4_row" in Path("docs/results/shrunken.svg").read_text()


@pytest.fixture
def runs(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Planned]:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(shrunken(tiny), sort_keys=False))
    name, experiment = read("mine.yaml")
    return plan(name, experiment, experiment.seeds)


def test_only_what_is_not_done_is_started_and_it_resumes(runs: list[Planned], monkeypatch: pytest.MonkeyPatch) -> None:
    started, process = list[list[str]](), subprocess.Popen

    def popen(command: list[str], **_: object) -> subprocess.Popen:
        started.append(command)
        return process(["true"])

    for run in runs:
        run.folder.mkdir(parents=True)
        (run.folder / "summary.json").touch()
    (runs[3].folder / "summary.json").unlink()
    monkeypatch.setattr(running, "_told", lambda run: "")
    monkeypatch.setattr(subprocess, "Popen", popen)
    running.train(runs, 2, running.code())
    assert started == [[sys.executable, "-m", "rlcore.cli.main", *runs[3].command]]


def test_code_that_changes_meanwhile_ends_the_experiment(runs: list[Planned]) -> None:
    with pytest.raises(UserError, match="the code has changed since this began"):
        running.train(runs, 2, "what it was")
    assert not Path("runs").exists()


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> list[subprocess.Popen]:
    """Processes of another program in place of the runs."""
    started: list[subprocess.Popen] = []

    def start(run: Planned, now: str) -> subprocess.Popen:
        log = running._log(run)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            started.append(subprocess.Popen([sys.executable, "-c", program, run.name], stdout=file, stderr=file))
        return started[-1]

    monkeypatch.setattr(running, "_start", start)
    return started


WAITS = """
import sys, time
if sys.argv[1] == 'grpo' and FAILS:
    time.sleep(0.5)
    sys.exit('error: out of luck')
try:
    print('waiting', flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print('told to stop', flush=True)
"""


def test_a_failed_run_ends_the_others_and_is_quoted(runs: list[Planned], monkeypatch: pytest.MonkeyPatch) -> None:
    started = stand_in(monkeypatch, WAITS.replace("FAILS", "True"))
    with pytest.raises(
        UserError, match=r"grpo, seed 100 failed: error: out of luck \(all of it: runs/repro/mine/grpo/100.log\)"
    ):
        running.train(runs, 2, running.code())
    assert len(started) == 2
    assert "told to stop" in Path("runs/repro/mine/dr_grpo/100.log").read_text()


def test_ctrl_c_tells_each_run_once_and_waits_for_it(runs: list[Planned], monkeypatch: pytest.MonkeyPatch) -> None:
    started, before = stand_in(monkeypatch, WAITS.replace("FAILS", "False")), signal.getsignal(signal.SIGTERM)
    logs = [running._log(run) for run in runs[:2]]

    def wait(seconds: float) -> None:
        if all(log.exists() and "waiting" in log.read_text() for log in logs):
            signal.raise_signal(signal.SIGTERM)  # as Ctrl-C
        pause(seconds)

    pause = time.sleep
    monkeypatch.setattr(running.time, "sleep", wait)
    with pytest.raises(KeyboardInterrupt):
        running.train(runs, 2, running.code())
    assert [process.poll() for process in started] == [0, 0]
    assert [log.read_text() for log in logs] == ["waiting\ntold to stop\n"] * 2
    assert signal.getsignal(signal.SIGTERM) == before
