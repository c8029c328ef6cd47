"""`rlcore reward lint`: each thing that is wrong with a reward is found and named, and the shipped ones pass."""

from __future__ import annotations

import json
import re
import shlex
import string
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards.compose import Rewards
from rewards.lint import Finding, Report, lint
from rewards.probes import FORMS, PROBES, probes
from rlcore.cli import main as cli
from rlcore.data.sources.chain import chain
from rlcore.prompts import Prompter
from rlcore.protocols import Reward, StatefulReward
from rlcore.recipe.schema import Component, Prompt
from rlcore.run.metrics import Metrics
from rlcore.toy import model
from rlcore.types import Group, Invalid, Problem, Sampling, Score, Scored
from tests.conftest import REPOSITORY

FIRST = Problem("p/1", "3+5-2=?", "6", meta={"solution": "3+5=8\n8-2=6\n#### 6"})
SECOND = Problem("p/2", "1+1+1=?", "3", meta={"solution": "1+1=2\n2+1=3\n#### 3"})
SHORT = Problem("p/3", "1+4=?", "5", meta={"solution": "1+4=5\n#### 5"})
PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
LIMIT = Sampling(max_new_tokens=256)


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    """Of a tokenizer with a token for each printable character."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "CHARACTERS", string.printable)
        tokenizer = model.build_tokenizer()
    return Prompter(Prompt(template="{problem}\nSo?"), tokenizer)


@pytest.fixture
def linted(prompter: Prompter) -> Callable[..., Report]:
    def run(*components: dict[str, Any], problems: Sequence[Problem] = (FIRST, SECOND)) -> Report:
        named = [{**c, "name": c["name"] if c["name"].islower() else f"{__name__}:{c['name']}"} for c in components]
        rewards = Rewards([Component(**c) for c in named], max_invalid_fraction=1.0)
        try:
            return lint(rewards, problems, prompter, LIMIT)
        finally:
            rewards.close()

    return run


# -- rewards, most of them bad -------------------------------------------------------------------------------------------


class PerText(Reward):
    """What a completion is paid for its text alone; the others here do it wrongly."""

    def pay(self, text: str) -> Any:
        return float("=" in text)

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        return [Scored(self.pay(c.text)) for group in groups for c in group.completions]


class FirstWord(PerText):
    def pay(self, text: str) -> float:
        return float(len(text.split()[0]))


class OneShort(PerText):
    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        return super().score(groups, state)[1:]


class Forgetful(PerText):
    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        super().score(groups, state)
        return None  # type: ignore[return-value]


class Infinite(PerText):
    def pay(self, text: str) -> float:
        return float("inf") if not text else 1.0


class Tensors(PerText):
    def pay(self, text: str) -> torch.Tensor:
        return torch.tensor(1.0)


class Misfit(PerText):
    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        return [Scored(1.0, per_token=(1.0,)) for group in groups for _ in group.completions]


class Counting(PerText):
    calls = 0

    def pay(self, text: str) -> float:
        self.calls += 1
        return self.calls


class FirstOfGroup(PerText):
    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        return [Scored(float(k == 0)) for group in groups for k in range(len(group.completions))]


class Lonely(PerText):
    """Pays for being among others, and cannot be without them."""

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        return [Scored(1.0 / (len(groups) - 1)) for group in groups for _ in group.completions]


class Crowd(PerText):
    """Pays for the number of problems in the batch."""

    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        return [Scored(float(len(groups))) for group in groups for _ in group.completions]


class Accountant(PerText, StatefulReward):
    def initial_state(self) -> dict[str, int]:
        return {"seen": 0}

    def score(self, groups: Sequence[Group], state: dict[str, int]) -> list[Score]:
        state["seen"] += len(groups)
        return super().score(groups, state)

    def update(self, groups: Sequence[Group], graded: Any, state: Any) -> tuple[Any, Metrics]:
        return state, {}


class Polite(PerText):
    def pay(self, text: str) -> float:
        return float("Thank" in text)


class Brief(PerText):
    def pay(self, text: str) -> float:
        return -float(len(text))


class Lines(PerText):
    def pay(self, text: str) -> float:
        return float(text.count("="))


class Undecided(PerText):
    def score(self, groups: Sequence[Group], state: Any) -> list[Score]:
        return [Scored(1.0) if c.text else Invalid("nothing to judge") for group in groups for c in group.completions]


def troubles(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.status != "ok"]


@pytest.mark.parametrize(
    ("name", "check", "told"),
    [
        ("FirstWord", "contract", r"raised IndexError: .*test_lint.py:\d+\); broken by: empty$"),
        ("OneShort", "contract", r"returned 19 scores for 20 completions: it must return one for each$"),
        ("Forgetful", "contract", r"'Forgetful' returned NoneType: it must return a list"),
        ("Misfit", "contract", r"spread a score over 1 tokens of a completion of \d+$"),
        ("Infinite", "contract", r"not finite: Infinite: value is inf"),
        ("Tensors", "contract", r"a value is a Tensor, which no log can hold"),
        ("Lonely", "batch", r"all of the batch: reward 'Lonely' raised ZeroDivisionError"),
    ],
)
def test_what_would_stop_a_run_is_broken(linted: Callable, name: str, check: str, told: str) -> None:
    report = linted({"name": "answer"}, {"name": name})
    assert report.broken
    [found] = [finding for finding in report.findings if finding.status == "broken"]
    assert (found.check, found.component) == (check, name)
    assert re.search(told, found.told)


@pytest.mark.parametrize(
    ("name", "check", "told"),
    [
        ("Counting", "determinism", r"20 of 20 scores are others the second time: 'reference' of p/1 gets \d+, then \d+"),
        ("FirstOfGroup", "order", r"[234] of 20 scores are others in another order: 'reference' of p/1 gets 1, then 0"),
        ("Crowd", "batch", "20 of 20 scores .* where its group is all of the batch: 'reference' of p/1 gets 2, then 1"),
        ("Accountant", "state", "scoring changes it"),
    ],
)
def test_what_makes_a_score_mean_something_else_is_a_warning(linted: Callable, name: str, check: str, told: str) -> None:
    found = [
        finding for finding in linted({"name": "answer"}, {"name": name, "weight": 0}).findings if finding.status == "warn"
    ]
    assert [(finding.check, finding.component) for finding in found] == [(check, name)]
    assert re.match(told, found[0].told)


def test_where_scores_change_by_themselves_nothing_is_said_about_order(linted: Callable) -> None:
    checks = [finding.check for finding in linted({"name": "Counting"}).findings if finding.component == "Counting"]
    assert checks == ["contract", "determinism", "latency"]


@pytest.mark.parametrize(
    ("components", "named"),
    [
        ([{"name": "answer"}, {"name": "Polite", "weight": 0.9}], []),
        ([{"name": "answer"}, {"name": "Polite"}], ["thank you"]),
        ([{"name": "answer"}, {"name": "Polite", "gate": {"component": "answer", "at_least": 1}}], []),
        ([{"name": "answer"}, {"name": "Lines"}], ["steps repeated", "one step repeated"]),
        ([{"name": "answer"}, {"name": "Undecided"}], ["empty"]),
        ([{"name": "Polite"}], ["thank you"]),
        ([{"name": "Lines"}], ["steps repeated", "one step repeated"]),
        ([{"name": "PerText"}], []),
    ],
)
def test_a_hack_that_pays_is_named(linted: Callable, components: list[dict], named: list[str]) -> None:
    """A right answer is worth 1: Polite's 0.9 do not reach it, its 1 does, and behind a gate it has none. Lines pays 2 to a
    reference, 6 to that with its steps repeated and 20 to a step repeated. PerText pays for a step anywhere."""
    found = [finding for finding in troubles(linted(*components)) if finding.check == "hacks"]
    assert [re.match("'(.*?)'", finding.told)[1] for finding in found] == named


def test_without_a_verdict_what_has_no_answer_must_not_beat_a_wrong_completion(linted: Callable) -> None:
    """Brief pays −18 to the first problem's reference, and −12 to the wrong completion, which is that to the short one."""
    report = linted({"name": "Brief"}, problems=(FIRST, SHORT))
    paid = {payment.probe: payment.total for payment in report.payments if payment.problem == "p/1"}
    assert (paid["reference"], paid["wrong"], paid["thank you"], paid["empty"]) == (-18, -12, -10, 0)
    told = [finding.told for finding in troubles(report)]
    named = {re.match("'(.*?)'", line)[1] for line in told}
    assert {"wrong", "empty", "truncated", "thank you", "answer only"} <= named
    assert not {"steps repeated", "one step repeated"} & named
    assert "'wrong' pays in 1 of 2 problems: paid -12 for p/1, where 'reference' is paid -18" in [
        f.told for f in troubles(report)
    ]


# -- probes --------------------------------------------------------------------------------------------------------------


def test_the_probes_of_a_problem(prompter: Prompter) -> None:
    completions = probes([FIRST, SECOND], FORMS[0], prompter, LIMIT)[0].completions
    assert dict(zip(PROBES, [c.text for c in completions], strict=True)) == {
        "reference": "3+5=8\n8-2=6\n#### 6",
        "wrong": "1+1=2\n2+1=3\n#### 3",
        "empty": "",
        "truncated": "3+5=8\n8",
        "steps repeated": "3+5=8\n8-2=6\n3+5=8\n8-2=6\n3+5=8\n8-2=6\n#### 6",
        "one step repeated": "\n".join(["3+5=8"] * 20),
        "no separators": "3+5=8 8-2=6 #### 6",
        "answer only": "#### 6",
        "prompt copied": "3+5-2=?\nSo?",
        "thank you": "Thank you.",
    }
    end = prompter.end_of_turn()
    assert [c.token_ids[-1] == end for c in completions] == [name != "truncated" for name in PROBES]
    assert [c.finish_reason for c in completions] == ["length" if name == "truncated" else "stop" for name in PROBES]


def test_probes_are_cut_where_the_policy_would_be(prompter: Prompter) -> None:
    completions = probes([FIRST, SECOND], FORMS[0], prompter, Sampling(max_new_tokens=13))[0].completions
    assert max(len(c.token_ids) for c in completions) == 13
    assert completions[0].text == "3+5=8\n8-2=6\n#### "  # the mark is one token
    assert completions[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("components", "form"),
    [
        ([{"name": "answer"}], FORMS[0]),
        ([{"name": "answer", "extract": ["boxed"]}], FORMS[1]),
        ([{"name": "answer"}, {"name": "format", "style": "think_answer", "weight": 0.1}], FORMS[5]),
        ([{"name": "answer", "extract": ["boxed"]}, {"name": "OneShort"}], FORMS[0]),
    ],
)
def test_the_reference_takes_the_form_that_is_paid_best(linted: Callable, components: list[dict], form: str) -> None:
    """The source's own where that is, and where nothing can be paid."""
    report = linted(*components)
    assert report.form == form


def test_tool_calls_stand_in_their_tags(linted: Callable) -> None:
    calls = [Problem(f"p/{n}", "?", f'{{"name": "f", "arguments": {{"n": {n}}}}}', "tool_calls") for n in (1, 2)]
    report = linted({"name": "answer"}, {"name": "format", "style": "think_tool_call"}, problems=calls)
    assert report.form == FORMS[7]
    assert not troubles(report)


def test_problems_without_a_solution_or_another_answer(linted: Callable) -> None:
    """The answer alone, in a form that is found; and a wrong one is made up."""
    report = linted({"name": "answer", "extract": ["hashes"]}, problems=[replace(FIRST, meta={})])
    paid = {payment.probe: payment for payment in report.payments}
    assert (paid["reference"].text, paid["wrong"].text) == ("#### 6", "#### 61")
    assert (paid["reference"].total, paid["wrong"].total) == (1, 0)
    assert not troubles(report)


def test_a_reference_that_is_not_paid_as_one_is_told(linted: Callable) -> None:
    """Here the gold answer is not what the solution says. Its hacks are compared with nothing."""
    odd = replace(FIRST, answer="7", meta={"solution": FIRST.meta["solution"]})
    [found] = troubles(linted({"name": "answer", "extract": ["last_number"]}, problems=[SECOND, replace(odd, answer="x+y")]))
    assert (found.check, found.status) == ("reference", "warn")
    assert found.told.startswith("1 of 2 are not paid as right answers: answer: ")


def test_what_the_components_are_paid(linted: Callable) -> None:
    """1 · answer + 0.5 · Lines where the answer is right."""
    gated = {"name": "Lines", "weight": 0.5, "gate": {"component": "answer", "at_least": 1}}
    report = linted({"name": "answer"}, gated)
    first = {payment.probe: payment for payment in report.payments if payment.problem == "p/1"}
    assert first["reference"].values == {"answer": 1, "Lines": 2}
    assert {name: first[name].total for name in PROBES} == {
        "reference": 2,
        "wrong": 0,
        "empty": 0,
        "truncated": 0,
        "steps repeated": 4,
        "one step repeated": 0,
        "no separators": 2,
        "answer only": 1,
        "prompt copied": 0,
        "thank you": 0,
    }


def test_the_shipped_rewards_pass(linted: Callable) -> None:
    """On chains of two or three operations, whose solutions stay within Short-RL's band around an answer alone."""
    report = linted(
        {"name": "answer"},
        {"name": "format", "style": "think_answer", "weight": 0.2},
        {"name": "overlong", "max_tokens": 256, "buffer": 64},
        {"name": "short_rl", "length_tolerance": 40},
        problems=chain(count=4, difficulty=(2, 3), strategies={"steps": 1.0}),
    )
    assert not troubles(report)
    assert [finding.check for finding in report.findings if finding.component == "short_rl"] == [
        *("contract", "state", "determinism", "order", "batch", "latency")
    ]


@pytest.mark.parametrize(
    "component",
    [
        {"name": "kimi", "weight": 0.5},
        {"name": "efficiency"},
        {"name": "cosine", "max_tokens": 256},
        {"name": "lcpo_exact", "alpha": 0.01},
        {"name": "lcpo_max", "alpha": 0.01},
    ],
    ids=lambda component: component["name"],
)
def test_a_length_reward_is_sound_and_pays_the_shorter_of_two_right_answers(linted: Callable, component: dict) -> None:
    """The one probe that pays is the answer alone, which is right in fewer tokens. A solution on one line is as long."""
    budgeted = [replace(problem, meta={**problem.meta, "budget": 6}) for problem in (FIRST, SECOND)]
    report = linted({"name": "answer"}, component, problems=budgeted)
    checks = [finding.check for finding in report.findings if finding.component == component["name"]]
    assert checks == ["contract", "determinism", "order", "batch", "latency"]
    assert [re.match("'(.*?)' pays", finding.told)[1] for finding in troubles(report)] == ["answer only"]


# -- the command ---------------------------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """`rlcore ARGUMENTS`; its exit status."""
    monkeypatch.setattr(sys, "argv", ["rlcore", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code or 0


def test_the_page_shows_what_the_command_prints(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """docs/extending.md: the reward that stands there, the command and its output; but for how long it took."""
    section = PAGE[PAGE.index("check it before you train with it") :]
    [code] = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    [[asked, shown]] = re.findall(r"^```console\n\$ rlcore (.*?)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    (tmp_path / "my_rewards.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    result = tmp_path / "result.json"
    assert command(monkeypatch, *shlex.split(asked), f"model={tiny}", "--json", str(result)) == 0
    timeless = [re.sub(r"[\d.e-]+ ms", "_ ms", text).rstrip() for text in (capsys.readouterr().err, shown)]
    assert timeless[0] == timeless[1]
    said = json.loads(result.read_text())
    assert said["ok"] is True
    assert [finding["told"] for finding in said["findings"] if finding["status"] == "warn"] == re.findall(
        r"^warn    hacks        all        (.*)$", shown, re.MULTILINE
    )
    assert {payment["probe"] for payment in said["payments"]} == set(PROBES)


def test_a_broken_reward_is_exit_status_1(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    asked = ["quickstart", f"model={tiny}", "data.count=40", f"rewards=[answer, '{__name__}:FirstWord']"]
    assert command(monkeypatch, "reward", "lint", *asked) == 1
    assert re.search(r"^broken  contract     FirstWord  reward 'FirstWord' raised IndexError", capsys.readouterr().err, re.M)


def test_only_a_recipe_of_rl_has_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "this one is of `job: sft`" in str(command(monkeypatch, "reward", "lint", "toy/chain"))
