"""Knights and knaves: the puzzles' solutions are found again from their text alone, by an evaluator that shares no code
with the generator."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest

from rlcore.data.knights import puzzle
from rlcore.data.overlap import normalise
from rlcore.data.sources.knights import knights
from rlcore.errors import UserError


def solutions(text: str) -> tuple[list[str], list[dict[str, bool]]]:
    """The people and every cast that fits, each sentence being made into Python: "Bob is a knave" is (Bob == 0)."""
    said = re.findall(r'^(\w+) says: "(.*)\."$', text, re.MULTILINE)
    people = [name for name, _ in said]
    fitting = []
    for values in itertools.product((0, 1), repeat=len(people)):
        cast = dict(zip(people, values, strict=True))
        if all(bool(eval(_python(sentence, speaker), {}, cast)) == cast[speaker] for speaker, sentence in said):
            fitting.append({name: bool(value) for name, value in cast.items()})
    return people, fitting


def _python(sentence: str, speaker: str) -> str:
    sentence = re.sub(r"\bI am a\b", f"{speaker} is a", sentence)
    sentence = re.sub(r"(\w+) is a knight", r"(\1 == 1)", sentence)
    sentence = re.sub(r"(\w+) is a knave", r"(\1 == 0)", sentence)
    sentence = sentence.replace("if and only if", "==")
    return re.sub(r"^if (.*), then (.*)$", r"(not \1) or \2", sentence)


def test_a_puzzle_worked_by_hand() -> None:
    """If Bob were a knave, his "or" would be false, so that Alice would be a knight, but then Bob would be what she says, a
    knight. So Bob is a knight, Alice spoke the truth, and she is one, too."""
    text = 'Alice says: "Bob is a knight."\nBob says: "Alice is a knave or I am a knight."'
    assert solutions(text) == (["Alice", "Bob"], [{"Alice": True, "Bob": True}])


@pytest.mark.parametrize("people", [2, 3, 4, 7])
def test_every_puzzle_has_the_one_solution_that_is_its_answer(people: int) -> None:
    for problem in knights(people=people, count=60):
        names, fitting = solutions(problem.prompt)
        assert len(names) == people
        assert len(fitting) == 1, problem.prompt
        expected = ", ".join(f"{name} is a {'knight' if fitting[0][name] else 'knave'}" for name in names)
        assert problem.answer == expected
        assert problem.grader == "roles"
        assert problem.meta["people"] == people


def test_all_kinds_of_statements_are_made_and_both_roles_are_common() -> None:
    problems = knights(count=300)
    text = "\n".join(problem.prompt for problem in problems)
    for kind in (" and ", " or ", "if and only if", '"if ', '"[A-Z]\\w+ is a kn\\w+\\."', "I am a"):
        assert len(re.findall(kind, text)) > 30, kind
    share = sum(problem.answer.count("knight") for problem in problems) / 900
    assert 0.35 < share < 0.65


def test_the_same_seed_gives_the_same_puzzles_and_a_longer_list_starts_with_the_shorter() -> None:
    assert knights(count=40, seed=1) == knights(count=80, seed=1)[:40]
    assert knights(count=40, seed=1) != knights(count=40, seed=2)
    assert puzzle(random.Random(3), 4) == puzzle(random.Random(3), 4)


def test_train_and_test_have_nothing_in_common_whatever_the_seeds() -> None:
    train = {normalise(p.prompt) for seed in range(3) for p in knights(people=2, count=300, seed=seed)}
    test = {normalise(p.prompt) for seed in range(3) for p in knights(people=2, count=300, split="test", seed=seed)}
    assert not train & test


def test_no_puzzle_comes_twice() -> None:
    problems = knights(people=2, count=500)
    assert len({p.prompt for p in problems}) == len({p.id for p in problems}) == 500


def test_people_may_be_a_range() -> None:
    sizes = Counter(p.meta["people"] for p in knights(people=[2, 5], count=200))
    assert set(sizes) == {2, 3, 4, 5}
    assert min(sizes.values()) > 20


@pytest.mark.parametrize("people", [1, 11, [5, 3], [1, 3], [3], "3", [2, 3, 4], True, 2.5])
def test_impossible_people_are_refused(people: object) -> None:
    with pytest.raises(UserError, match=r"people must be a number or \[fewest, most\] within 2 to 10"):
        knights(people=people)  # type: ignore[arg-type]


def test_an_empty_count_is_refused() -> None:
    with pytest.raises(UserError, match="count must be at least 1, not 0"):
        knights(count=0)
