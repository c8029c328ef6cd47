"""Steps in text and tokens, what they are paid, and the component that puts both together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rewards.as_trl import as_trl
from rewards.credit import Credit, paid
from rewards.judge import Judge
from rewards.judged_text import Asked
from rewards.judges.chain_truth import SURE
from rewards.process.process import Process
from rewards.steps import last_tokens, split
from rlcore.errors import UserError
from rlcore.protocols import Progress, no_progress
from rlcore.toy.model import build_tokenizer
from rlcore.types import Completion, Group, Invalid, Problem, Sampling, Scored


class OfSolutions(Judge):
    of_solutions = True

    def log_odds(self, asked: Sequence[Asked], progress: Progress = no_progress) -> list[float | None]:
        return [0.0] * len(asked)


def test_a_judge_of_whole_solutions_is_paid_for_no_step_but_the_last() -> None:
    with pytest.raises(UserError, match="judges whole solutions, and min pays for each step: set credit: last"):
        Process(judge={"name": "chain_truth"}).judge_with(OfSolutions())
    Process(judge={"name": "chain_truth"}, credit="last").judge_with(OfSolutions())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\nb", [("a", 3), ("b", 4)]),
        ("a.\n\n\n\n b\n\n", [("a.", 6), ("b", 10)]),  # the blank before b is b's
        ("a\n\n \n\nb", [("a", 6), ("b", 7)]),
        ("one step\nof two lines", [("one step\nof two lines", 21)]),
        ("", []),
        (" \n\n ", []),
        ("<think>\n\na\n\n</think>\n\nb", [("a", 22), ("b", 23)]),
        ("<think>a</think> so b", [("a so b", 21)]),
    ],
)
def test_steps_of_a_text(text: str, expected: list[tuple[str, int]]) -> None:
    assert [(step.text, step.end) for step in split(text, "\n\n")] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<think>a\n\nb</think>\n\nc\n\nd", ["c", "d"]), ("<think>a\n\nb", []), ("a\n\nb", ["a", "b"])],
)
def test_steps_of_the_answer(text: str, expected: list[str]) -> None:
    assert [step.text for step in split(text, "\n\n", "answer")] == expected


class Pieces:
    """A tokenizer whose tokens are bytes given one by one: what a byte-level vocabulary does to separators and characters."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((b"a", b".\n\n", b"b", b""), [1, 3]),  # fused with what comes before; the end token is the last step's
        ((b"a", b"\n", b"\n", b"b"), [2, 3]),
        ((b"a", b"\n\nb", b"c"), [1, 2]),  # fused with the next step
        ((b"\xc3", b"\xa9", b"\n\n", b"\xe2\x82", b"\xac"), [2, 4]),  # characters of two and of three bytes
        ((b"a\n\nb\n\nc",), [0, 0, 0]),
    ],
)
def test_the_tokens_in_which_steps_end(pieces: tuple[bytes, ...], expected: list[int]) -> None:
    text = b"".join(pieces).decode()
    assert last_tokens(split(text, "\n\n"), range(len(pieces)), Pieces(*pieces)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("credit", "rewards", "expected"),
    [
        ("sum", [0.9, -0.2, 0.5], [0.9, -0.2, 0.5]),
        ("mean", [0.9, -0.2, 0.5], [0.3, -0.066667, 0.166667]),
        ("last", [0.9, -0.2, 0.5], [0, 0, 0.5]),
        ("product", [0.8, 0.6], [0, 0.72]),  # 0.9 · 0.8
        ("min", [0.9, -0.2, 0.5], [1.5018e-5, -0.199814, 4.5552e-4]),
        ("min", [0.8, 0.6], [0.095362, 0.528478]),
        ("strict_min", [0.9, -0.2, 0.5], [0, -0.2, 0]),
        ("delta", [0.9, 0.95, 0.6, 0.85, 0.99], [-0.05, 0.35, -0.25, 0.85, 0]),
        ("clip", [0.9, 0.95, 0.6, 0.85, 0.99], [0, 0, -0.2, 0, 0]),
        ("clip_delta", [0.9, 0.95, 0.6, 0.85, 0.99], [0, 0.2, -0.2, 0, 0]),
        ("delta", [0.9], [0]),
        ("min", [], []),
    ],
)
def test_what_steps_are_paid(credit: Credit, rewards: list[float], expected: list[float]) -> None:
    probabilities = [(r + 1) / 2 for r in rewards]
    assert paid(credit, probabilities, temperature=0.1, threshold=0.8) == pytest.approx(expected, abs=1e-6, rel=1e-4)


@pytest.mark.parametrize(("accuracy", "expected"), [(1.0, [0.9, 0.4]), (0.0, [-0.1, -0.6])])
def test_renorm_has_the_sign_of_the_outcome(accuracy: float, expected: list[float]) -> None:
    found = paid("renorm", [0.9, 0.4], temperature=0.1, threshold=0, accuracy=accuracy)
    assert found == pytest.approx(expected)


def completed(text: str) -> Completion:
    ids = tuple(build_tokenizer()(text).input_ids)
    return Completion("p", 0, 0, (), ids, (1,) * len(ids), (0.0,) * len(ids), (0,) * len(ids), Sampling(), "stop", text)


CHAIN = Problem("p", "3+5-9=?", "9")


def test_the_component_pays_a_step_where_it_ends() -> None:
    """The second of three lines is wrong: its reward stands at its line break, and so does that of the first."""
    reward = Process(judge={"name": "chain_truth"}, credit="sum", separator="\n")
    reward.begin(build_tokenizer())
    right, empty = completed("3+5=8\n8-9=8\n#### 9"), completed("")
    [scored, nothing] = reward.score([Group(CHAIN, [right, empty])], None)
    assert isinstance(scored, Scored)
    assert scored.per_token is not None
    assert (scored.value, scored.judged) == (pytest.approx(1), "8-9=8")
    assert "3 steps" in scored.reason
    assert {i: round(r, 6) for i, r in enumerate(scored.per_token) if r} == {5: 1, 11: -1, 13: 1}
    assert scored.measured == {"steps": 3}
    assert nothing == Scored(0.0, "no steps", measured={"steps": 0})


def test_renorm_reads_what_was_verified() -> None:
    """Steps right, wrong, right: 1 + 0 + 1 beside a right answer, 3 less beside a wrong one."""
    reward = Process(judge={"name": "chain_truth"}, credit="renorm", separator="\n")
    same = [completed("3+5=8\n8-9=8\n#### 9")] * 2
    found = [score.value for score in reward.score([Group(CHAIN, same, (1.0, 0.0))], None) if isinstance(score, Scored)]
    assert found == pytest.approx([2, -1])
    with pytest.raises(UserError, match="no reward component is verifiable: add `answer`"):
        reward.score([Group(CHAIN, same)], None)


def test_in_trl_it_is_the_sum() -> None:
    function = as_trl(Process(judge={"name": "chain_truth"}, credit="strict_min", separator="\n"))
    texts = ["3+5=8\n#### 9", "3+5=7\n#### 9", ""]
    found = function(prompts=[CHAIN.prompt] * 3, completions=texts, completion_ids=[[1]] * 3)
    assert found == pytest.approx([1, -1, 0], abs=10 * 2.8**-SURE)


def test_what_the_judge_cannot_read_to_its_end_is_invalid() -> None:
    class ShortSighted(Judge):
        def log_odds(self, asked: Sequence[Asked], progress: Progress = no_progress) -> list[float | None]:
            return [0.0 if len(each.previous) < 2 else None for each in asked]

    reward = Process(judge={"name": "chain_truth"}, credit="sum", separator="\n")
    reward.judge_with(ShortSighted())
    short, long = (completed(text) for text in ("a\nb", "a\nb\nc"))
    found = reward.score([Group(CHAIN, [short, long])], None)
    assert isinstance(found[0], Scored)
    assert found[1] == Invalid("longer than what the reward model can read")


def test_steps_that_the_truth_does_not_know_are_refused() -> None:
    with pytest.raises(UserError, match=r"steps that end with '\\n', and these end with '\\n\\n'"):
        _ = Process(judge={"name": "chain_truth"}).judge


def test_refusals() -> None:
    with pytest.raises(UserError, match="separator"):
        Process(judge={"name": "chain_truth"}, separator="")
    with pytest.raises(UserError, match="no 'chain_truht'"):
        Process(judge={"name": "chain_truht"})


def test_a_run_is_paid_for_its_steps(launch: Callable[..., Path], steps: Callable[[Path], list[dict[str, float]]]) -> None:
    judged = 'rewards=[answer, {name: process, judge: {name: chain_truth}, separator: "\\n"}]'
    folder = launch("process", judged, "algorithm.advantage=pure", "steps=1")
    [row] = steps(folder)
    assert -1 <= row["reward/process"] < 0  # a tiny model's lines are wrong
    assert row["groups/trained"] == 4
    assert row["process/steps"] >= 1
