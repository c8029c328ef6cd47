"""`job: heads`: what it leaves behind, and that a run that is resumed trains nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlcore import jobs, models
from rlcore.errors import UserError
from rlcore.preview import preview
from rlcore.recipe.load import Loaded, load
from rollout.decoding import heads
from trainers import heads as trainer


def loaded(tiny: Path, tmp_path: Path, *overrides: str) -> Loaded:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"job: heads\nname: mine\nthreads: 1\nmodel: {tiny}\nheads: {{near: firp, far: {{name: medusa, steps: 2}}}}\n"
        "data: {name: chain, count: 24}\nevaluated_on: {name: chain, split: test, count: 6}\n"
        "rollout: {temperature: 0, max_new_tokens: 12}\nbatch_size: 8\nepochs: 3\n"
    )
    return load([str(path), f"output={tmp_path / 'run'}", *overrides])


def test_each_kind_is_trained_written_and_measured(tiny: Path, tmp_path: Path) -> None:
    asked = loaded(tiny, tmp_path)
    lines = list(preview(asked.recipe))
    assert any("near: firp, 3 tokens ahead" in line for line in lines)
    assert "optimiser steps of each: 9" in lines
    summary = jobs.run(asked, resume=False)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 19))
    for label, first, steps in (("near", 0, 3), ("far", 9, 2)):
        assert rows[first + 8][f"heads/kl_1/{label}"] < rows[first][f"heads/kl_1/{label}"]
        found = summary["heads"][label]
        assert 1 <= found["tokens_per_pass"] <= 1 + steps
        assert f"agreement_{steps}" in found
        assert heads.load(str(tmp_path / f"run/heads/{label}"), models.configuration(str(tiny))).steps == steps
    assert (tmp_path / "run/report.html").is_file()


def test_a_resumed_run_keeps_the_heads_that_are_written(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, trained = loaded(tiny, tmp_path), []
    train = trainer._train

    def until(*arguments: Any) -> None:
        trained.append(arguments[2])
        if len(trained) == 2:
            raise KeyboardInterrupt
        train(*arguments)

    monkeypatch.setattr(trainer, "_train", until)
    with pytest.raises(KeyboardInterrupt):
        jobs.run(asked, resume=False)
    summary = jobs.run(asked, resume=True)
    assert trained == ["near", "far", "far"]
    assert set(summary["heads"]) == {"near", "far"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["heads={mine: nothing}"], "no 'nothing' in rollout/heads"),
        (["heads={mine: {name: firp, layer: 9}}"], "after layer 9"),
        (["rollout.max_new_tokens=5000"], "context"),
        (["lora={rank: 4}"], "heads learn, and the model does not"),
    ],
)
def test_what_cannot_be_trained_is_refused(tiny: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        jobs.run(loaded(tiny, tmp_path, *overrides), resume=False)
