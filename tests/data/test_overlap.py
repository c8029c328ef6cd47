"""When two texts are the same question, decontamination, and the refusal to evaluate on training data."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlcore.data.formats.prm800k import prm800k
from rlcore.data.formats.prmbench import prmbench
from rlcore.data.mixture import load
from rlcore.data.overlap import decontaminate, normalise, refuse_overlap
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


def test_decontamination_takes_out_what_is_evaluated_and_keeps_the_rest_in_order() -> None:
    train = problems("train", "A b?", "C?", "D?", "c", "E?")
    done = decontaminate(train, ["X?", "C", "a  B", "never trained on"], text=lambda problem: problem.prompt)
    assert [p.id for p in done.kept] == ["train/2", "train/4"]
    assert [p.id for p in done.dropped] == ["train/0", "train/1", "train/3"]
    assert str(done) == "2 of 5 remain, 3 dropped for overlap"
    refuse_overlap(done.kept, problems("eval", "X?", "C", "a  B"))


def test_decontamination_works_for_whatever_has_a_problem_text() -> None:
    assert decontaminate(["A?", "B?"], ["b"], text=str) == (["A?"], ["B?"])
    assert decontaminate([("A?", 1)], [], text=lambda pair: pair[0]).kept == [("A?", 1)]
    assert decontaminate([], ["b"], text=str) == ([], [])


@pytest.mark.usefixtures("real_data")
def test_real_prm800k_holds_math500_problems_only_and_no_math_training_problem(real_data: Path) -> None:
    """All 101 problems of phase 1's test set; of the six sample rows four, and another is of MATH's training set."""
    math500 = [p.prompt for p in load([Source(name="math500")])]
    math = [p.prompt for p in load([Source(name="math")])]
    tested = prm800k(path=str(real_data / "prm800k_phase1_test.jsonl"))
    samples = prm800k(path=str(real_data / "prm800k_samples.jsonl"))

    assert decontaminate(tested, math500, text=lambda s: s.problem).kept == []
    assert len(decontaminate(math500, [s.problem for s in tested], text=str).dropped) == 101
    assert decontaminate(tested, math, text=lambda s: s.problem).dropped == []
    assert [s.id[-1] for s in decontaminate(samples, math500, text=lambda s: s.problem).dropped] == ["1", "2", "4", "5"]
    assert [s.id[-1] for s in decontaminate(samples, math, text=lambda s: s.problem).dropped] == ["3"]


def test_real_prmbench_questions_are_those_of_prm800k(real_data: Path) -> None:
    """Word for word in the field `question`, all 90. Of the 111 that are asked, which were written anew, 84 are recognised;
    comparing without any white space recognises 86, one of which says log_2 64 for log_264 and one a word, a space and `?`."""
    solutions = [s for c in ("confidence", "redundency") for s in prmbench(path=str(real_data / f"prmbench_{c}.jsonl"))]
    math = [p.prompt for p in load([Source(name="math")])]
    math500 = [p.prompt for p in load([Source(name="math500")])]
    tested = [s.problem for s in prm800k(path=str(real_data / "prm800k_phase1_test.jsonl"))]
    verbatim = {s.meta["question"] for s in solutions}
    asked = {normalise(s.problem): s.problem for s in solutions}.values()

    for other in (math500, tested):
        assert len(decontaminate(verbatim, other, text=str).dropped) == len(verbatim) == 90
        assert (len(decontaminate(asked, other, text=str).dropped), len(asked)) == (84, 111)
    assert decontaminate([*verbatim, *asked], math, text=str).dropped == []
