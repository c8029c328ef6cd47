"""When two texts are the same question, and the refusal to evaluate on training data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlcore.data.mixture import load
from rlcore.data.overlap import normalise, refuse_overlap
from rlcore.errors import UserError
from rlcore.recipe.schema import Source
from rlcore.types import Problem


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is  three\n plus four?", "what is three plus four"),
        ("Hello, World!", "hello world"),
        ("Bob’s “cat” – 3", 'Bob\'s "cat" - 3'),
        ("½ of ｘ²", "1⁄2 of x2"),
        ("3 - 2 = ?", "3-2=?"),
        (r"Find $a,$ $b.$", r"find $a$ $b$"),
        (r"Find \[x + 1.\]Then stop.", r"Find \[x+1\] then stop"),
        (r"$x = \!\sqrt{2}\, y$", r"$x=\sqrt{2} y$"),
        (r"\\ -x^2", r"\\-x^2"),
    ],
)
def test_the_same_question_written_otherwise(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 3-4?", "What is 3/4?"),
        ("What is 3.4?", "What is 34?"),
        ("What is 3.4?", "What is 3 4?"),
        ("What is 3 4?", "What is 34?"),
        ("What is (1+2)*3?", "What is 1+(2*3)?"),
        ("What is -4 squared?", "What is 4 squared?"),
        ("Complete ( ( )", "Complete [ [ ]"),
        ("#.#\n..#", "#.#\n.##"),
        ("a car pet", "a carpet"),
    ],
)
def test_different_questions_stay_different(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


def problems(name: str, *texts: str) -> list[Problem]:
    return [Problem(f"{name}/{i}", text, "1") for i, text in enumerate(texts)]


def test_shared_problems_are_refused_with_their_number_an_example_and_what_to_do() -> None:
    with pytest.raises(UserError) as error:
        refuse_overlap(problems("train", "A b?", "C?", "D?"), problems("eval", "X?", "c", "a  B"))
    assert str(error.value) == (
        "2 of 3 evaluation problems are in the training data (evaluation eval/1 is training train/1): "
        "evaluate on another split or source, or take them out of one side"
    )


def test_nothing_shared_is_accepted() -> None:
    refuse_overlap(problems("train", "A?", "B?"), problems("eval", "C?"))
    refuse_overlap([], problems("eval", "C?"))


@pytest.mark.usefixtures("real_data")
def test_real_training_sets_hold_no_test_problem() -> None:
    train = load([Source(name="gsm8k"), Source(name="math")])
    test = load([Source(name="gsm8k", split="test"), Source(name="math500")])
    refuse_overlap(train, test)
    with pytest.raises(UserError, match="500 of 500 evaluation problems"):
        refuse_overlap(test, load([Source(name="math500")]))


@pytest.mark.usefixtures("real_data")
def test_a_sign_tells_a_test_problem_from_a_training_problem() -> None:
    """MATH asks for the roots of z⁴ - z² + 1 in training and of z⁴ + z² + 1 in MATH500: punctuation is not noise."""
    [trained] = [p for p in load([Source(name="math")]) if p.id == "math/train/3631"]
    [tested] = [p for p in load([Source(name="math500")]) if p.id == "math500/test/precalculus/285"]
    assert trained.prompt.replace("-", "+") == tested.prompt
    assert normalise(trained.prompt) != normalise(tested.prompt)


def test_real_prm800k_problems_are_found_in_math500(real_data: Path) -> None:
    """All 101 of PRM800K's phase-1 test problems; and PRMBench's MATH problems, which are spaced and punctuated otherwise."""
    math500 = {normalise(p.prompt) for p in load([Source(name="math500")])}
    prm800k = {row["question"]["problem"] for row in _rows(real_data / "prm800k_phase1_test.jsonl")}
    prmbench = {row["original_question"] for row in _rows(real_data / "prmbench_confidence.jsonl")}
    prmbench |= {row["original_question"] for row in _rows(real_data / "prmbench_redundency.jsonl")}
    assert sum(normalise(text) in math500 for text in prm800k) == len(prm800k) == 101
    assert len(math500 & {normalise(text) for text in prmbench}) >= 84


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
