"""The toy world of knights and knaves: its notation, its traces, and that what is right there is graded as right."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.data.knights import solve
from rlcore.data.sources.toy_knights import toy_knights
from rlcore.errors import UserError
from rlcore.grading.extract import extract
from rlcore.grading.graders import at_once
from rlcore.toy.knights import STRATEGIES, Puzzle, sample_puzzle, write
from rlcore.toy.model import build_tokenizer

EXAMPLE = Puzzle((("knave", 1), ("and", ("knight", 0), ("knight", 1))), (True, False))


def test_the_documented_example() -> None:
    """In ab a says that b is a knave, x, which is false (0), and a knight's claim has to be true: it does not fit (-)."""
    assert (EXAMPLE.text, EXAMPLE.answer, solve(EXAMPLE.claims)) == ("a:x,b:anb?", "10", [EXAMPLE.cast])
    rng = random.Random(0)
    assert write(EXAMPLE, "guess", rng) == "#### 10"
    assert write(EXAMPLE, "explained", rng) == "ab:x0-\nax:x1+a1b0+\n#### 10"
    assert write(EXAMPLE, "exhaustive", rng) == "ab:x0-a1b1+\nax:x1+a1b0+\nwb:x0+a0b1-\nwx:x1-a0b0+\n#### 10"
    assert write(EXAMPLE, "mistaken", random.Random(0)) == "ab:x0-\nax:x1+a1b0-\nwb:x0+a0b1+\n#### 01"


def fits(text: str, cast: str, speaker: int) -> bool:
    """Whether a claim fits a cast, read from the puzzle's text by code that shares none with the generator."""
    said = text.removesuffix("?").split(",")[speaker].partition(":")[2]
    for letter, connective in (("n", " & "), ("o", " | ")):
        said = said.replace(letter, connective)
    return bool(eval(re.sub("[a-dw-z]", lambda role: str(int(role[0] in cast)), said))) == (cast[speaker] in "abcd")


def judged(line: str) -> list[bool]:
    """What a line says of each claim it gets to; every part with the truth value it has in the line's cast."""
    cast, _, claims = line.partition(":")
    for role, true in re.findall("([a-dw-z])([01])", claims):
        assert (role in cast) == bool(int(true))
    return [verdict == "+" for verdict in re.findall("[+-]", claims)]


@given(st.integers(0, 10_000), st.integers(2, 4), st.sampled_from(sorted(STRATEGIES)))
def test_puzzles_have_one_solution_and_honest_traces_judge_every_claim_right(seed: int, people: int, strategy: str) -> None:
    rng = random.Random(seed)
    puzzle = sample_puzzle(rng, people)
    casts = map("".join, itertools.product(*zip("abcd"[:people], "wxyz"[:people], strict=True)))
    fitting = [cast for cast in casts if all(fits(puzzle.text, cast, speaker) for speaker in range(people))]
    assert ["".join(str(int(role in "abcd")) for role in cast) for cast in fitting] == [puzzle.answer]
    *lines, last = write(puzzle, strategy, rng).split("\n")
    honest = all(
        fits(puzzle.text, line[:people], speaker) == said for line in lines for speaker, said in enumerate(judged(line))
    )
    assert honest is (strategy != "mistaken")
    assert (last == f"#### {puzzle.answer}") is (strategy != "mistaken")
    if strategy == "explained":
        assert lines[-1].startswith(fitting[0])
    if strategy == "exhaustive":
        assert len(lines) == 2**people


def test_what_is_written_can_be_read_and_graded() -> None:
    """Every character has a token; an answer counts as right only with all of its digits, a knave at the front included."""
    tokenizer = build_tokenizer()
    for problem in toy_knights(count=60, strategies=dict.fromkeys(STRATEGIES, 1.0)):
        solution = str(problem.meta["solution"])
        assert tokenizer.unk_token_id not in tokenizer(problem.prompt + solution).input_ids
        answer = extract(solution, ["hashes"])
        assert answer == solution.rpartition("#### ")[2]
        verdict = at_once(answer, problem)
        assert verdict is not None
        assert (verdict.kind == "correct") is (answer == problem.answer)
    [knave_first] = [p for p in toy_knights(count=60) if p.answer.startswith("0")][:1]
    verdict = at_once(knave_first.answer[1:], knave_first)
    assert verdict is not None
    assert verdict.kind == "wrong"


def test_splits_share_no_puzzle() -> None:
    train = {p.prompt for p in toy_knights(split="train", count=800, seed=0)}
    test = {p.prompt for p in toy_knights(split="test", count=800, seed=1)}
    assert not train & test
    assert {p.meta["people"] for p in toy_knights(count=50, people=[2, 3])} == {2, 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategies": {"gues": 1.0}}, "did you mean 'guess'"),
        ({"split": "tests"}, "'toy_knights' has no split 'tests'; did you mean 'test'"),
        ({"people": [1, 3]}, r"people \[1, 3\] is not \[fewest, most\] within 2 to 4"),
        ({"people": [3, 5]}, r"people \[3, 5\] is not"),
    ],
)
def test_what_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        toy_knights(**options)
