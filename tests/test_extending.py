"""docs/extending.md, followed to the letter in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) for line in block.splitlines()]
SMALL = [
    "steps=1",
    "eval=null",
    "rollout={prompts_per_step: 2, samples: 2, max_new_tokens: 8}",
    "data={name: chain, split: train, count: 20}",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What somebody has who saved the page's files."""
    folder = tmp_path_factory.mktemp("extending")
    for name, code in PYTHON:
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(code)
    return folder


def do(folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_page_has_what_is_run_here() -> None:
    assert [name for name, _ in PYTHON] == ["mine.py", "mine.py", "test_mine.py"]
    assert len(COMMANDS) == 4


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_a_command_of_the_page_works(folder: Path, tiny: Path, number: int) -> None:
    program, *arguments = shlex.split(COMMANDS[number])
    if program == "rlcore":
        shrunk = [*arguments, *SMALL, f"model={tiny}", f"output=run-{number}"]
        done = do(folder, [sys.executable, "-m", "rlcore.cli.main", *shrunk])
        assert done.returncode == 0, done.stderr[-2000:]
        assert (folder / f"run-{number}" / "summary.json").exists()
    else:
        done = do(folder, [sys.executable, *arguments])
        assert done.returncode == 0, done.stdout[-2000:]
        assert "1 passed" in done.stdout


def test_an_option_that_does_not_exist_is_refused(folder: Path, tiny: Path) -> None:
    asked = "algorithm.advantage={name: 'mine:against_the_middle', scal: 2}"
    done = do(folder, [sys.executable, "-m", "rlcore.cli.main", "train", "quickstart", asked, f"model={tiny}"])
    assert done.returncode == 1
    assert "has no option 'scal'; did you mean 'scale'?" in done.stderr
