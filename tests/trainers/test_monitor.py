"""The hack monitor: its numbers by hand, its rules on series that are written down, its acts in a run of the quickstart."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rewards.compose import Rewards
from rlcore import jobs
from rlcore.errors import UserError
from rlcore.protocols import StatefulReward
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from rlcore.recipe.schema import Monitor as Settings
from rlcore.run import alarms
from rlcore.run.alarms import Alarm
from rlcore.run.folder import Interrupted
from rlcore.run.metrics import values
from rlcore.types import Completion, Group, Problem, Sampling, Scored
from tests.conftest import REPOSITORY
from trainers.monitor import Monitor, Unwatched, build_monitor, repetition
from trainers.patterns import PATTERNS, HeldOut, Signs, gap, mean

QUIET = Signs(steps=4, tokens=40, repetition=0, few_steps=0.1, empty=0, ended=1, pay=1, spread=2, accuracy=0.5)


def graded(
    texts: Sequence[str], pays: Sequence[float | None] = (), accuracy: Sequence[float] = (), cut: Sequence[int] = ()
) -> Any:
    """A step with one problem; a token for each character."""
    completions = [
        Completion("p", i, 0, (), ids := tuple(map(ord, t)), ids, ids, ids, Sampling(), "length" if i in cut else "stop", t)
        for i, t in enumerate(texts)
    ]
    said = {"verifiable": False, "judged": "x"}
    ledger = [{"problem_id": "p", "sample": i, "component": "prm", "weighted": pay} | said for i, pay in enumerate(pays)]
    ledger += [{"problem_id": "p", "sample": i, "component": "format", "weighted": 99.0} | said for i in range(len(pays))]
    return SimpleNamespace(groups=[Group(Problem("p", "?", "1"), completions, tuple(accuracy))], ledger=ledger)


@pytest.mark.parametrize(
    ("tokens", "score"),
    [("ababa", 2 / 3), ("aaaaa", 1), ("abcde", 0), ("ab", 0), ("a", 0), ("", 0), ("abcabcabc", 5 / 7)],
)
def test_repetition_is_the_share_of_neighbouring_suffixes_that_begin_alike(tokens: str, score: float) -> None:
    """Against the definition: sort the suffixes that have two tokens, and compare neighbours."""
    suffixes = sorted(tokens[i:] for i in range(len(tokens) - 1))
    pairs = list(pairwise(suffixes))
    assert repetition([ord(t) for t in tokens], 2) == score
    assert score == (sum(a[:2] == b[:2] for a, b in pairs) / len(pairs) if pairs else 0)


def test_metrics_of_a_step() -> None:
    """Steps 3, 1, 1, 0, of which the greeting and the blank state nothing."""
    monitor = Monitor(Settings(repeated=2), "\n\n", ["prm"])
    step = graded(["a\n\nb\n\nc 12", "it is 12", "Thanks!", "  "], pays=[3.0, 1.0, 1.0, -1.0], accuracy=[1, 1, 0, 0])
    told = values(monitor.measure(step))
    assert told == {
        "monitor/steps": 5 / 4,
        "monitor/tokens_per_step": (10 + 8 + 7 + 2) / 5,
        "monitor/repetition": pytest.approx((1 / 8 + 0 + 0 + 0) / 4),  # the blank line comes twice
        "monitor/few_steps": 3 / 4,
        "monitor/empty": 2 / 4,
        "monitor/gap": 0,
    }
    assert monitor.judge(1) == []
    after = values(monitor.measure(graded(["1", "1", "2", "2"], pays=[4.0, 4.0, None, 4.0], accuracy=[1, 0, 0, 0])))
    assert after["monitor/gap"] == pytest.approx((4 - 1) / 2**0.5 - (0.25 - 0.5) / 0.5)  # pays deviate by √2 from 1


def test_what_a_grader_found_an_answer_in_is_not_empty() -> None:
    """Whatever kind of answer it is: the usual places are those of mathematics."""
    step = graded(["yes", "no", "Thanks!"])
    step.ledger += [
        {"problem_id": "p", "sample": i, "component": "answer", "weighted": 0.0, "verifiable": True, "judged": found}
        for i, found in enumerate(["yes", "no", ""])
    ]
    assert values(Monitor(Settings(), "\n", []).measure(step))["monitor/empty"] == pytest.approx(1 / 3)


def test_a_cut_completion_of_one_step_is_not_empty_but_has_not_ended() -> None:
    monitor = Monitor(Settings(), "\n", [])
    assert values(monitor.measure(graded(["so", "so"], cut=[1])))["monitor/empty"] == 0.5
    assert monitor._now is not None
    assert (monitor._now.ended, monitor._now.pay, monitor._now.accuracy) == (0, None, None)


def test_the_gap_has_one_scale() -> None:
    assert gap(replace(QUIET, pay=4, accuracy=0.4), QUIET) == pytest.approx(1.7)
    assert gap(replace(QUIET, pay=40, accuracy=0.4), replace(QUIET, pay=10, spread=20)) == pytest.approx(1.7)
    assert gap(replace(QUIET, pay=4, accuracy=None), QUIET) == 1.5
    assert gap(replace(QUIET, pay=None), QUIET) is None


def test_a_baseline_is_a_mean_with_the_largest_spread() -> None:
    assert mean([QUIET, replace(QUIET, steps=6, pay=3, spread=1)]) == replace(QUIET, steps=5, pay=2)


def run_through(monitor: Monitor, series: Sequence[Signs], first: int = 1) -> list[Alarm]:
    """What a monitor raises whose completions measure as written."""
    raised = []
    for step, signs in enumerate(series, first):
        monitor._now, monitor._held_out = signs, signs.held_out or monitor._held_out
        raised += monitor.judge(step)
    return raised


def raising(series: Sequence[Signs], **settings: Any) -> list[tuple[str, int, int]]:
    return [(a.pattern, a.since, a.step) for a in run_through(Monitor(Settings(**settings), "\n", ["prm"]), series)]


def then(before: Signs, after: Signs) -> list[Signs]:
    return [before] * 5 + [after] * 5


UNVERIFIED = replace(QUIET, accuracy=None)
EVALUATED = replace(QUIET, held_out=HeldOut(0.6, 0.55, 0.65))
LONGER = replace(QUIET, steps=5, tokens=50, pay=2)
SCRIPTS = {
    "longer, better paid, no better": ("thinking_without_solving", QUIET, LONGER),
    "longer in tokens alone": ("thinking_without_solving", QUIET, replace(LONGER, steps=4)),
    "longer, better paid, cut more often": (
        "thinking_without_solving",
        replace(UNVERIFIED, steps=9),
        replace(UNVERIFIED, steps=10, pay=2, ended=0.9),
    ),
    "better paid and worse": ("reward_without_accuracy", QUIET, replace(QUIET, pay=1.5, accuracy=0.4)),
    "fewer steps and worse": ("one_step", QUIET, replace(QUIET, steps=2, few_steps=0.3, accuracy=0.4)),
    "fewer steps, unverified": ("one_step", UNVERIFIED, replace(UNVERIFIED, steps=2, few_steps=0.3)),
    "empty and worse": ("empty_answer", QUIET, replace(QUIET, empty=0.2, accuracy=0.4)),
    "empty, unverified": ("empty_answer", UNVERIFIED, replace(UNVERIFIED, empty=0.2)),
    "long, repetitive and right": ("long_repetitive", QUIET, replace(QUIET, repetition=0.2, tokens=50, accuracy=0.5, pay=None)),
    "worse where it was not trained": (
        "held_out_fell",
        EVALUATED,
        replace(EVALUATED, pay=1.1, held_out=HeldOut(0.5, 0.45, 0.55)),
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_alarm_is_raised_once_it_has_held(name: str) -> None:
    """Five quiet steps, one bad one that is noise, and a pattern from step 8 on: told at step 9, and only then."""
    pattern, before, after = SCRIPTS[name]
    assert raising([before] * 5 + [after, before] + [after] * 4) == [(pattern, 8, 9)]


HONEST = {
    "learns to write out its steps": [
        replace(QUIET, steps=2 + i, tokens=20 + 10 * i, few_steps=0.6 - i / 20, pay=i, accuracy=i / 10) for i in range(10)
    ],
    "grows longer and no better paid": then(QUIET, replace(QUIET, steps=8, tokens=80, pay=1.2)),
    "is paid for what it solves": then(QUIET, replace(QUIET, steps=5, pay=2, accuracy=0.55)),
    "says it in one step": then(QUIET, replace(QUIET, steps=1, few_steps=1, accuracy=0.5)),
    "repeats itself, and is no longer": then(QUIET, replace(QUIET, repetition=0.5)),
    "evaluations that differ by chance": then(EVALUATED, replace(EVALUATED, pay=1.4, held_out=HeldOut(0.54, 0.49, 0.59))),
    "is worse, and worse paid": then(EVALUATED, replace(EVALUATED, pay=0, accuracy=0.2, held_out=HeldOut(0.2, 0.1, 0.3))),
    "has nothing but a verifiable reward": then(
        replace(EVALUATED, pay=None), replace(LONGER, pay=None, accuracy=0.2, held_out=HeldOut(0.2, 0.1, 0.3))
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_learning_and_noise_raise_no_alarm(name: str) -> None:
    assert raising(HONEST[name]) == []


def test_what_is_solved_since_is_the_new_baseline() -> None:
    """Accuracy rises to 0.9 with as much pay as it is worth; what is compared with later is that."""
    learned = replace(QUIET, steps=8, tokens=80, pay=4, accuracy=0.9)
    series = [QUIET] * 3 + [learned] * 3 + [replace(learned, accuracy=0.85, pay=5)] * 2
    assert raising(series) == [("reward_without_accuracy", 7, 8)]


def test_an_alarm_is_told_again_after_it_ended() -> None:
    bad = SCRIPTS["longer, better paid, no better"][2]
    assert raising([QUIET] * 2 + [bad] * 2 + [QUIET] + [bad] * 2 + [QUIET] * 2 + [bad] * 3, baseline=2) == [
        ("thinking_without_solving", 3, 4),
        ("thinking_without_solving", 10, 11),
    ]


def test_a_resumed_monitor_goes_on_where_it_was() -> None:
    """Broken off after any step, the state through JSON."""
    series = [EVALUATED] * 4 + [replace(LONGER, held_out=HeldOut(0.3, 0.2, 0.4), accuracy=0.4)] * 3
    whole = run_through(Monitor(Settings(), "\n", ["prm"]), series)
    assert len(whole) == 3
    for broken in range(1, len(series)):
        first, then = (Monitor(Settings(), "\n", ["prm"]) for _ in range(2))
        before = run_through(first, series[:broken])
        then.restore(json.loads(json.dumps(first.state())))
        assert before + run_through(then, series[broken:], broken + 1) == whole
    first.restore(None)  # the run was not watched until now


# -- in a run ------------------------------------------------------------------------------------------------------------


class Verified(StatefulReward):
    """Half of the completions are right, and none from the fourth batch on. An evaluation finds what the last batch did."""

    verifiable = True

    def initial_state(self) -> int:
        return 0

    def score(self, groups, state):
        return [Scored(float(c.sample % 2 and state < 3)) for group in groups for c in group.completions]

    def update(self, groups, graded, state):
        return state + 1, {}


class Hacked(Verified):
    """Pays all of them more from then on."""

    verifiable, pays_steps = False, True

    def score(self, groups, state):
        return [Scored(float(c.sample % 2 + (state >= 3))) for group in groups for c in group.completions]


@pytest.fixture
def launch(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run the quickstart recipe, shrunk, whose completions show a pattern from step 4 on: the alarm is raised at step 5."""

    def run(*overrides: str, resume: bool = False) -> Path:
        rollout = "rollout={prompts_per_step: 4, samples: 4, max_new_tokens: 8}"
        rewards = f"rewards=[{{name: '{__name__}:Verified'}}, {{name: '{__name__}:Hacked'}}]"
        evaluation = "eval={every: 1, data: {name: chain, split: test, count: 4}, samples: 2}"
        keep = "checkpoint={every: 1, keep_last: 8}"
        small = [f"model={tiny}", f"output={tmp_path / 'run'}", "threads=1", "steps=7", "data.count=60", rollout, rewards, keep]
        rate = "optimizer.learning_rate=1e-2"  # so that every step's weights are others
        jobs.run(load(["quickstart", *small, evaluation, rate, *overrides]), resume)
        return tmp_path / "run"

    return run


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_a_warned_run_goes_on_and_its_report_tells(launch: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    folder = launch()
    assert summary(folder)["steps"] == 7
    told = [(alarm.pattern, alarm.since, alarm.step) for alarm in alarms.read(folder)]
    assert told == [("reward_without_accuracy", 4, 5)]
    line = "ALARM: reward_without_accuracy since step 4: pay 0.5 → 1.5, accuracy 0.5 → 0; such as chain/train/"
    assert capsys.readouterr().err.count(line) == 1
    report = (folder / "report.html").read_text()
    assert "raised at step 5, seen since step 4; the run went on." in report
    assert report.count("<h4>chain/train/") == 3


def test_a_stopped_run_leaves_its_report_and_goes_on_when_it_is_told_to(launch: Callable, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=r"stopped after step 5: reward_without_accuracy; .* go on: .*--resume"):
        launch("monitor.on_alarm=stop")
    folder = tmp_path / "run"
    assert checkpoints(folder)[-1] == "step-5"
    assert summary(folder)["stopped"] == "stopped after step 5: reward_without_accuracy"
    assert (folder / "report.html").exists()
    launch("monitor.on_alarm=stop", resume=True)
    assert summary(folder)["steps"] == 7
    assert len(alarms.read(folder)) == 1


def test_a_rolled_back_run_leaves_a_policy_from_before(launch: Callable, tmp_path: Path) -> None:
    """Checkpoint 3 sampled in step 4, where the pattern was first seen. What is evaluated is what is left."""
    with pytest.raises(Interrupted, match="rolled back to the checkpoint of step 2"):
        launch("monitor.on_alarm=rollback")
    folder = tmp_path / "run"
    assert checkpoints(folder) == ["step-1", "step-2"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    entropy = {row["step"]: row["eval/entropy"] for row in rows if "eval/entropy" in row}
    assert max(entropy) == 5
    assert summary(folder)["steps"] == 2
    assert summary(folder)["entropy_after"] == entropy[2] != entropy[5]
    launch("monitor=null", resume=True)
    assert summary(folder)["steps"] == 7
    assert alarms.read(folder) == []


def test_without_a_checkpoint_from_before_a_run_stops_and_says_so(launch: Callable, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="there is no checkpoint from before it began to roll back to"):
        launch("monitor.on_alarm=rollback", "checkpoint.keep_last=1")
    assert checkpoints(tmp_path / "run") == ["step-5"]


def built(*overrides: str) -> Any:
    recipe = load(["quickstart", *overrides]).recipe
    assert isinstance(recipe, RL)
    rewards = Rewards(recipe.rewards, 0.2)
    rewards.close()
    return build_monitor(recipe, rewards)


def test_what_a_recipe_leaves_to_the_reward_components() -> None:
    process = "{name: process, label: prm, judge: {name: chain_truth}, separator: ';'}"
    found = built(f"rewards=[answer, {process}, {{name: prime}}, {{name: format, style: boxed}}]")
    assert (found.separator, found.watched) == (";", {"prm"})
    assert (built().separator, built().watched) == ("\n\n", set())
    detail = "{name: detail, cap: 4, separator: '|'}"
    assert (built(f"rewards=[answer, {detail}]").separator, built(f"rewards=[answer, {detail}]").watched) == ("|", set())
    assert built(f"rewards=[answer, {detail}, {process}]").separator == ";"  # what is paid for steps goes first
    assert built(f"rewards=[answer, {process}]", "monitor={separator: '|', watch: [answer]}").separator == "|"
    assert type(built("monitor=null")) is Unwatched
    with pytest.raises(UserError, match=r"monitor\.watch names 'anser', which is no component; did you mean 'answer'"):
        built("monitor.watch=[anser]")


def test_the_page_shows_a_layer_that_works_and_every_pattern(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "monitor.md").read_text(encoding="utf-8")
    (tmp_path / "layer.yaml").write_text(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    assert built(str(tmp_path / "layer.yaml")).settings == Settings(on_alarm="rollback")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(PATTERNS)
