"""How a reward model's texts are written, and that what is kept beside its weights writes them again."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards.judged_text import STEP, JudgedText, load_judged_text
from rlcore.errors import UserError


def test_steps_are_joined_and_put_in_place() -> None:
    text = JudgedText("prm", STEP, "\n\n").write("1+1?", ["one", "two"], ["three"])
    assert text.startswith("Question:\n1+1?\n\n")
    assert text.endswith("Previous reasoning:\none\n\ntwo\n\nNow, let's focus on the current step:\nthree")


def test_braces_in_what_is_judged_are_only_text() -> None:
    text = JudgedText("prm", "{problem}|{previous}|{current}|{other}", "/").write(
        "{current}", ["{problem}"], ["a", r"\frac{1}{2}"]
    )
    assert text == r"{current}|{problem}|a/\frac{1}{2}|{other}"


def test_what_is_kept_beside_the_weights_writes_the_same(tmp_path: Path) -> None:
    written = JudgedText("hrm", "{problem} {current}", " ", temperature=1.5)
    written.save(tmp_path)
    assert load_judged_text(tmp_path) == written


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is no reward model of `job: reward_model`"):
        load_judged_text(tmp_path)
