"""Bad input, as a user meets it: one line on standard error, exit status 1, and nothing left half-written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlcore.cli import main as cli
from rlcore.protocols import Reward
from rlcore.types import Invalid, Scored

MISTYPED = "{name: transformers, batch_sise: 7}"


class Failing(Reward):
    verifiable = True

    def score(self, groups, state):
        return [Invalid("the grader is down") for group in groups for _ in group.completions]


class Short(Reward):
    def score(self, groups, state):
        return [Scored(0.0)]


@pytest.fixture
def rlcore(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run `rlcore ARGUMENTS` in this process; the error line. Fails the test if it succeeds or says more than a line."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["rlcore", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        message = str(stopped.value)
        assert message.startswith("error: ")
        assert "\n" not in message
        return message

    return run


def small(tiny: Path, folder: Path) -> list[str]:
    return [
        "quickstart",
        f"model={tiny}",
        f"output={folder}",
        "steps=1",
        "data.count=40",
        "eval=null",
        "rollout.max_new_tokens=8",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=no/such-model"], r"'no/such-model' is neither a folder nor found on the hub"),
        (["model=./nowhere"], r"model folder './nowhere' does not exist"),
        (["model=toy:chian"], r"there is no toy:chian; did you mean 'chain'"),
        (["data={name: file, path: EMPTY}"], r"empty.jsonl"),
        (["data={name: file, path: MALFORMED}"], r"malformed.jsonl:2"),
        (["data={name: gsm9k}"], r"did you mean 'gsm8k'"),
        (["rollout.max_new_tokens=510"], r"more than the model's context of 512: shorten the prompt or lower"),
        (["rewards=[{name: 'HERE:Failing'}]"], r"could not be graded, .*max_invalid_fraction 0.2: 256 x the grader is down"),
        (["rewards=[answer, {name: 'HERE:Short'}]"], r"reward 'Short' returned 1 scores for 256 completions"),
        (["rewards=[answer, overlong]"], r"'overlong' needs the option 'max_tokens', 'buffer'"),
        (["rewards=[compose]"], r"there is no 'compose' in rewards; "),
        (["device=tpu"], r"device 'tpu' is none of auto, cpu, cuda, mps"),
        (["rewards=[anser]"], r"did you mean 'answer'"),
        (
            ["rewards=[{name: overlong, max_tokens: 9, buffer: 3}]", "algorithm.dynamic_sampling={}"],
            r"no reward component is verifiable: add `answer`",
        ),
        (["rewards=[{name: 'no_such_module:Thing'}]"], r"cannot import 'no_such_module:Thing'"),
        (["algorithm.loss={name: ppo_clip, clip_hihg: 1}"], r"no option 'clip_hihg'; did you mean 'clip_high'"),
        (["rollout.engine=vlm"], r"there is no 'vlm' in rollout/engines"),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else None,
)
def test_a_run_that_cannot_be(rlcore: Callable, tiny: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    import re

    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "malformed.jsonl").write_text('{"question": "1", "answer": "1"}\n{"question": \n')
    places = {"EMPTY": tmp_path / "empty.jsonl", "MALFORMED": tmp_path / "malformed.jsonl", "HERE": __name__}
    for word, place in places.items():
        overrides = [override.replace(word, str(place)) for override in overrides]
    folder = tmp_path / "run"
    assert re.search(message, rlcore("train", *small(tiny, folder), *overrides))
    assert not folder.exists()


def test_an_unwritable_folder(rlcore: Callable, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot write to run folder" in rlcore("train", *small(tiny, tmp_path / "file" / "run"))


def test_malformed_yaml_and_wrong_keys_name_the_line(rlcore: Callable, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("job: rl\nsteps: [\n")
    assert "mine.yaml:" in rlcore("train", str(recipe))
    recipe.write_text("job: rl\nmodel: a\nsteps: 1\ndata: gsm8k\nrolout: {}\n")
    assert "mine.yaml:5: unknown key 'rolout'; did you mean 'rollout'?" in rlcore("train", str(recipe))


def test_training_on_the_evaluation_problems_is_refused(rlcore: Callable, tiny: Path, tmp_path: Path) -> None:
    same = "eval={data: {name: chain, split: train, count: 10}}"
    assert "10 of 10 evaluation problems are in the training data" in rlcore("train", *small(tiny, tmp_path / "run"), same)


def test_eval_and_report_refuse_in_one_line(rlcore: Callable, tiny: Path, tmp_path: Path) -> None:
    assert "did you mean 'gsm8k'" in rlcore("eval", "--model", "toy:chain", "--data", "gsm8")
    assert "did you mean 'batch_size'" in rlcore("eval", "--model", "x", "--data", "chain", "--engine", MISTYPED)
    assert "--engine '3' names nothing" in rlcore("eval", "--model", "x", "--data", "chain", "--engine", "3")
    assert "neither float32 nor bfloat16" in rlcore("eval", "--model", "x", "--data", "chain", "--dtype", "fp8")
    budgeted = ("eval", "--model", str(tiny), "--data", "chain", "--template", "{problem} {budget}")
    assert "the template tells {budget}, and this model is of no run that gives budgets" in rlcore(*budgeted)
    assert str(tmp_path) in rlcore("report", str(tmp_path))


def test_a_full_disk(tiny: Path, tmp_path: Path) -> None:
    """A run folder on a file system of 300 KB: the checkpoint does not fit, says so, and leaves no half of itself behind."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = " ".join([sys.executable, "-m", "rlcore.cli.main", "train", *small(tiny, disk / "run")])
    script = f"mount -t tmpfs -o size=300k none {disk} || exit 77; {command}; status=$?; ls -RA {disk}; exit $status"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode == 77 or "Operation not permitted" in done.stderr:
        pytest.skip("mounting a small file system needs root")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "o space left on device" in done.stderr.splitlines()[-1]
    assert "step-1" not in done.stdout.replace("step-000001", "")
