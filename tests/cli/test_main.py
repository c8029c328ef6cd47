"""The command line itself: its version, and what Ctrl-C leaves."""

from __future__ import annotations

import sys

import pytest

import rlcore
from rlcore.cli import main as cli
from rlcore.cli import report


def test_it_says_its_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["rlcore", "--version"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert capsys.readouterr().out == f"rlcore {rlcore.__version__}\n"


def test_ctrl_c_ends_any_verb_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: str, json_file: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "run", interrupted)
    monkeypatch.setattr(sys, "argv", ["rlcore", "report", "runs/mine"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130
