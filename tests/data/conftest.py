"""The real data files, for tests that must not run on made-up input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("RLCORE_DATA_DIR") or Path(__file__).parents[3] / "shared" / "data")


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    if not (FOLDER / "gsm8k_train.jsonl").is_file():
        pytest.skip(f"no gsm8k_train.jsonl in {FOLDER}; set RLCORE_DATA_DIR to the folder with the real data")
    monkeypatch.setenv("RLCORE_DATA_DIR", str(FOLDER))
    return FOLDER
