"""The verifiable rewards `answer`, `format` and `partial_credit`: values, reasons, and one score per completion in order.

Graders and their failures are tests/grading's; here they only become scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from rewards.verifiable.answer import Answer
from rewards.verifiable.format import Format
from rewards.verifiable.partial_credit import PartialCredit
from rlcore.data.sources.gym import gym
from rlcore.errors import UserError
from rlcore.plugins import bind, find
from rlcore.types import Completion, Group, Invalid, Problem, Sampling, Scored


def group(gold: str, *texts: str, grader: str = "math", cut: bool = False) -> Group:
    completions = [
        Completion("p", n, 0, (1,), (2,), (1,), (0.0,), (0,), Sampling(), "length" if cut else "stop", text)
        for n, text in enumerate(texts)
    ]
    return Group(Problem("p", "", gold, grader), completions)


@pytest.fixture(scope="module")
def answer() -> Iterator[Answer]:
    reward = Answer()
    yield reward
    reward.close()


def test_answer_scores_every_completion_in_order(answer: Answer) -> None:
    """Groups one after the other, completions in their order; right is 1, wrong is 0 and says why."""
    groups = [group("5", r"\boxed{5}", r"\boxed{6}", "hm"), group("(x+1)^2", "#### 5", r"\boxed{x^2+2x+1}")]
    assert answer.score(groups, None) == [
        Scored(1.0, judged="5"),
        Scored(0.0, "wrong answer: 6", judged="6"),
        Scored(0.0, "no answer"),
        Scored(0.0, "wrong answer: 5", judged="5"),
        Scored(1.0, judged="x^2+2x+1"),
    ]
    assert answer.verifiable


def test_a_cut_completion_is_not_an_answer(answer: Answer) -> None:
    """A closed answer counts even if babble ran into the limit after it; otherwise the reason is the cut."""
    scores = answer.score([group("5", r"\boxed{5} and so o", "5 is the", cut=True)], None)
    assert scores == [Scored(1.0, judged="5"), Scored(0.0, "truncated")]


def test_a_failed_grader_is_invalid(answer: Answer) -> None:
    """An unreadable reference answer is no verdict on the completion: never a 0."""
    scores = answer.score([group("{{{", r"\boxed{5}"), group("5", r"\boxed{5}")], None)
    assert scores == [Invalid("gold answer unparsable: {{{"), Scored(1.0, judged="5")]


def test_answer_looks_where_it_is_told() -> None:
    reward = Answer(extract=["answer_tag"])
    scores = reward.score([group("5", "<answer>5</answer>", r"\boxed{5}")], None)
    assert scores == [Scored(1.0, judged="5"), Scored(0.0, "no answer")]
    reward.close()


def test_answer_wants_the_form_that_it_is_told() -> None:
    """Wrong ones keep their own reasons, and what could not be judged is no less so."""
    reward = Answer(form="closed_think")
    texts = [r"a</think>\boxed{5}", r"\boxed{5}", r"\boxed{6}", "hm"]
    scores = reward.score([group("5", *texts), group("{{{", r"\boxed{5}")], None)
    assert scores == [
        Scored(1.0, judged="5"),
        Scored(0.0, "right, in another form: 0 times </think>", judged="5"),
        Scored(0.0, "wrong answer: 6", judged="6"),
        Scored(0.0, "no answer"),
        Invalid("gold answer unparsable: {{{"),
    ]
    reward.close()


def test_bad_settings_of_answer() -> None:
    with pytest.raises(UserError, match="did you mean 'boxed'"):
        Answer(extract=["boxd"])
    with pytest.raises(UserError, match="answer: there is no style 'box'; did you mean 'boxed'"):
        Answer(form="box")


@pytest.mark.parametrize(
    ("style", "text", "fault"),
    [
        ("think_answer", "<think>a</think><answer>b</answer>", ""),
        ("think_answer", "<think>a</think>\n<answer>b</answer>\n", ""),
        ("think_answer", "<answer>b</answer>", "0 times <think>"),
        ("think_answer", "<think>a</think> b", "0 times <answer>"),
        ("think_answer", "<think>a</think><answer>b</answer><answer>c</answer>", "2 times <answer>"),
        ("think_answer", "<think>a</think></think><answer>b</answer>", "2 times </think>"),
        ("think_answer", "<answer>b</answer><think>a</think>", "tags out of order"),
        ("think_answer", "<think><answer>b</answer></think>", "tags out of order"),
        ("think_answer", "", "0 times <think>"),
        ("think_tool_call", "<think>a</think>\n<tool_call>\n{}\n</tool_call>", ""),
        ("think_tool_call", "<think>a</think><answer>b</answer>", "0 times <tool_call>"),
        ("think_tool_call", "<think>a</think><tool_call>{}</tool_call><tool_call>{}</tool_call>", "2 times <tool_call>"),
        ("closed_think", "a</think> b", ""),
        ("closed_think", "a", "0 times </think>"),
        ("closed_think", "a</think> b</think> c", "2 times </think>"),
        ("boxed", r"so \boxed{\frac{1}{2}}", ""),
        ("boxed", r"\boxed{1} or \boxed{2}", ""),
        ("boxed", r"\boxed{1", "no box"),
        ("boxed", r"<think>\boxed{1}</think> 1", "no box"),
        ("boxed", "1", "no box"),
    ],
)
def test_format(style: str, text: str, fault: str) -> None:
    """1 for the exact form, 0 for anything else, with what is wrong with it."""
    assert Format(style=style).score([group("1", text)], None) == [Scored(float(not fault), fault)]


def test_an_unknown_style_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'boxed'"):
        Format(style="box")


ROME = '{"name": "weather", "arguments": {"city": "Rome", "day": 1}}'
CET = '{"name": "time", "arguments": {"zone": "CET"}}'


def test_partial_credit_pays_what_is_right_of_tool_calls() -> None:
    """ToolRL's scale and the docstring's numbers: −3 + 6 · 2.5/6; beside `answer`, to which anything but all is 0."""
    groups = [group(f"{ROME}\n{CET}", tagged(ROME, CET), tagged(ROME.replace("1", "2")), "none", grader="tool_calls")]
    partial, strict = PartialCredit(low=-3, high=3), Answer()
    assert [score.value for score in partial.score(groups, None)] == pytest.approx([3, -0.5, -3])
    assert [score.value for score in strict.score(groups, None)] == [1, 0, 0]
    partial.close()
    strict.close()
    assert not partial.verifiable


def tagged(*calls: str) -> str:
    return f"<think></think><tool_call>{chr(10).join(calls)}</tool_call>"


def test_partial_credit_is_the_tasks_own_score() -> None:
    """Reasoning Gym pays a puzzle of knights and knaves of which one of two is right 0.3 + 0.7 · 1/2."""
    pytest.importorskip("reasoning_gym")
    [problem] = gym(task="knights_knaves", count=1, config={"n_people": 2})
    right, half = (
        problem.answer,
        re.sub(r"\w+\.$", "knave." if problem.answer.endswith("knight.") else "knight.", problem.answer),
    )
    completions = group("", *(f"<answer>{answer}</answer>" for answer in (right, half, "no idea"))).completions
    reward = PartialCredit(extract=["answer_tag"])
    assert [score.value for score in reward.score([Group(problem, completions)], None)] == pytest.approx([1, 0.65, 0])
    reward.close()


def test_partial_credit_of_right_and_wrong() -> None:
    """Where the grader knows no more; a grader that failed stays Invalid."""
    reward = PartialCredit(low=0.5)
    scores = reward.score([group("5", r"\boxed{5}", r"\boxed{6}", "hm"), group("{{{", r"\boxed{5}")], None)
    assert [score.value if isinstance(score, Scored) else score for score in scores] == [
        1,
        0.5,
        0.5,
        Invalid("gold answer unparsable: {{{"),
    ]
    reward.close()
    with pytest.raises(UserError, match=r"low must be below high \(1\), not 1"):
        PartialCredit(low=1)


@pytest.mark.parametrize(
    ("name", "cls", "options"),
    [
        ("answer", Answer, {"extract": ["boxed"], "workers": 1, "deadline_s": 1.0}),
        ("format", Format, {"style": "boxed"}),
        ("partial_credit", PartialCredit, {"low": -3, "high": 3, "extract": ["boxed"]}),
    ],
)
def test_recipes_find_them_by_name(name: str, cls: type, options: dict[str, Any]) -> None:
    assert find("rewards", name) is cls
    assert isinstance(bind("rewards", name, options)(), cls)
