"""Reward models combined: in probabilities, worked by hand, and their disagreement where people read it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rewards.judge import Judge, load_judge, probability
from rewards.judged_text import Asked
from rewards.judges.ensemble import Combine
from rlcore.errors import UserError
from rlcore.protocols import Progress, no_progress

ASKED = [Asked("?", (), (text,)) for text in ("a", "b")]


class Sure(Judge):
    """So sure that every step is right; counts how often it is asked."""

    asked = 0

    def __init__(self, *, p: float) -> None:
        self.log = math.log(p / (1 - p)) if 0 < p < 1 else math.copysign(math.inf, p - 0.5)

    def log_odds(self, asked: Sequence[Asked], progress: Progress = no_progress) -> list[float | None]:
        Sure.asked += 1
        progress(len(asked))
        return [self.log] * len(asked)


class Schooled(Sure):
    """It says what it was trained on."""

    def __init__(self, *, problems: Sequence[str] = (), of_solutions: bool = False, separator: str | None = None) -> None:
        super().__init__(p=0.5)
        self.trained_on, self.of_solutions, self.steps_end_with = frozenset(problems), of_solutions, separator


def ensemble(*probabilities: float, **options: Any) -> Mapping[str, Any]:
    return {"name": "ensemble", "judges": [{"name": f"{__name__}:Sure", "p": p} for p in probabilities], **options}


@pytest.mark.parametrize(
    ("combine", "penalty", "expected"),
    [
        ("mean", 1, 0.6),
        ("min", 1, 0.3),
        ("median", 1, 0.6),
        ("mean_minus_std", 1, 0.355051),
        ("mean_minus_std", 0.5, 0.477526),
        ("mean_minus_std", 4, 0),
    ],
)
def test_worked_values(combine: Combine, penalty: float, expected: float) -> None:
    """0.9, 0.6, 0.3: the standard deviation is √0.06. The mean of log-odds would be another."""
    judgement = load_judge(ensemble(0.9, 0.6, 0.3, combine=combine, penalty=penalty)).judge(ASKED)
    assert [probability(z) for z in judgement.log_odds] == pytest.approx([expected] * 2, abs=1e-6)
    assert judgement.measured == {"disagreement": pytest.approx([0.06**0.5] * 2)}


def test_members_that_are_certain_stay_finite() -> None:
    """At odds of 1e9, whichever way; half of them is even odds."""
    for p in (0.0, 1.0):
        expected = math.copysign(math.log(1e9), p - 0.5)
        assert load_judge(ensemble(p, p)).log_odds(ASKED) == pytest.approx([expected] * 2)
    assert load_judge(ensemble(0.0, 1.0)).log_odds(ASKED) == [0, 0]


def test_every_member_is_asked_once_and_watched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sure, "asked", 0)
    heard: list[int] = []
    load_judge(ensemble(0.5, 0.6, 0.7)).judge(ASKED, heard.append)
    assert (Sure.asked, heard) == (3, [2])


def test_what_its_members_were_trained_on_it_was_trained_on() -> None:
    specs = [{"name": f"{__name__}:Schooled", "problems": problems} for problems in (["a", "b"], ["b", "c"])]
    assert load_judge({"name": "ensemble", "judges": specs}).trained_on == {"a", "b", "c"}


def test_judges_of_steps_and_of_solutions_are_no_ensemble() -> None:
    specs = [{"name": f"{__name__}:Schooled", "of_solutions": whole} for whole in (True, False)]
    with pytest.raises(UserError, match="judge steps and others whole solutions"):
        load_judge({"name": "ensemble", "judges": specs})


def test_judges_of_other_steps_are_no_ensemble() -> None:
    specs = [{"name": f"{__name__}:Schooled", "separator": separator} for separator in (None, "\n", "\n\n")]
    assert load_judge({"name": "ensemble", "judges": specs[:2]}).steps_end_with == "\n"
    with pytest.raises(UserError, match=r"steps that end differently, with '\\n', '\\n\\n'"):
        load_judge({"name": "ensemble", "judges": specs})


def test_one_judge_is_no_ensemble() -> None:
    with pytest.raises(UserError, match="give two judges or more"):
        load_judge(ensemble(0.5))


def test_a_run_tells_how_they_disagree(launch: Callable[..., Path], steps: Callable[[Path], list[dict[str, float]]]) -> None:
    """0.9 and 0.5: 0.2 at every step, in the metrics and in every row of the ledger; the steps are paid for the 0.7 between."""
    paid = {"name": "process", "judge": ensemble(0.9, 0.5), "credit": "last", "separator": "\n"}
    folder = launch("ensemble", f"rewards={json.dumps(['answer', paid])}", "steps=1")
    [row] = steps(folder)
    assert row["process/disagreement"] == pytest.approx(0.2)
    rows = pq.read_table(folder / "ledger" / "step-000001.parquet").to_pylist()
    told = [json.loads(row["measured"]) for row in rows if row["component"] == "process" and row["value"]]
    assert told
    assert all(each["disagreement"] == pytest.approx(0.2) for each in told)
    assert {round(row["value"], 6) for row in rows if row["component"] == "process"} <= {0.4, 0.0}
