"""What reward models learn from: each kind's rule by hand, and the counts of real data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rlcore.data.formats.chain_steps import chain_steps
from rlcore.data.formats.math_shepherd import math_shepherd
from rlcore.data.formats.prm800k import prm800k
from rlcore.data.step_examples import Example, Kind, Neutral, examples
from rlcore.data.steps import AnnotatedSolution, AnnotatedStep, Candidate, LabelledSolution, StepLabel


def annotated(*steps: tuple[int | None, list[tuple[str, StepLabel | None]]], human: str = "", **meta: str) -> AnnotatedSolution:
    made = tuple(
        AnnotatedStep(tuple(Candidate(text, label, human=text == human) for text, label in candidates), chosen)
        for chosen, candidates in steps
    )
    return AnnotatedSolution("s", "Q", "2", made, meta)


TWO = annotated(
    (0, [("a", "correct"), ("b", "wrong"), ("c", "neutral"), ("d", None)]),
    (1, [("e", "wrong"), ("f", "correct"), ("g", "correct")]),
)


def told(kind: Kind, solution: AnnotatedSolution | LabelledSolution, **options: object) -> list[tuple[str, str, float]]:
    return [(",".join(e.previous), ",".join(e.current), e.label) for e in examples(kind, solution, **options)]  # type: ignore[arg-type]


def test_a_prm_judges_every_candidate_after_the_chosen_steps() -> None:
    assert told("prm", TWO) == [("", "a", 1), ("", "b", 0), ("a", "e", 0), ("a", "f", 1), ("a", "g", 1)]


def test_an_hrm_judges_pairs_too_by_their_last_step() -> None:
    assert told("hrm", TWO) == [*told("prm", TWO), ("", "a,e", 0), ("", "a,f", 1), ("", "a,g", 1)]


def test_a_wrong_step_and_the_right_one_in_its_place_are_a_repaired_pair() -> None:
    """The case that the paper is about, and that its released data never has: wrong, then right."""
    found = examples("hrm", TWO, repaired=True)
    assert [e for e in found if e.made == "repaired"] == [
        Example("Q", (), ("b", "a"), 1.0, "repaired"),
        Example("Q", ("a",), ("e", "f"), 1.0, "repaired"),
    ]
    assert not any(e.made == "repaired" for e in examples("hrm", TWO))


@pytest.mark.parametrize(("neutral", "expected"), [("drop", []), ("positive", [1.0]), ("negative", [0.0])])
def test_neutral_steps_count_as_the_recipe_says(neutral: Neutral, expected: list[float]) -> None:
    assert [e.label for e in examples("prm", TWO, neutral=neutral) if e.current == ("c",)] == expected


def test_an_orm_judges_solutions_by_their_last_step_and_makes_wrong_ones_from_the_end() -> None:
    """Right: with each right last step. Wrong: with the wrong last step, and with wrong ones all the way from the first."""
    assert told("orm", TWO) == [("", "a,e", 0), ("", "a,f", 1), ("", "a,g", 1), ("", "b,e", 0)]


def test_an_orm_makes_at_most_four_wrong_solutions_for_each_right_one() -> None:
    wrong: list[tuple[str, StepLabel | None]] = [(str(i), "wrong") for i in range(3)]
    one_right = annotated((3, [*wrong, ("a", "correct")]), (3, [*wrong, ("b", "correct")]))
    assert Counter(e.label for e in examples("orm", one_right)) == {1.0: 1, 0.0: 3}  # 3 more would fit, 9 would not


def test_an_annotators_own_step_is_gone_on_from_and_is_no_example() -> None:
    solution = annotated((1, [("a", "wrong"), ("mine", None)]), (0, [("b", "correct")]), human="mine")
    assert told("prm", solution) == [("", "a", 0), ("mine", "b", 1)]
    assert told("orm", annotated((1, [("a", "wrong"), ("mine", None)]), human="mine")) == [("", "a", 0), ("", "mine", 1)]


@pytest.mark.parametrize("meta", [{"finish_reason": "give_up"}, {"finish_reason": "bad_problem"}, {"unusable": "cut"}])
def test_nothing_is_made_of_what_was_given_up(meta: dict[str, str]) -> None:
    given_up = annotated((0, [("a", "correct")]), **meta)
    assert not any(examples(kind, given_up, repaired=kind == "hrm") for kind in ("orm", "prm", "hrm"))


def test_labelled_solutions_have_one_candidate_a_step() -> None:
    solution = LabelledSolution("s", "Q", None, ("a", "b", "c"), ("correct", "wrong", None))
    assert told("prm", solution) == [("", "a", 1), ("a", "b", 0)]
    assert told("hrm", solution)[2:] == [("", "a,b", 0)]


def test_steps_of_the_toy_world_have_their_truth_and_repairs_occur_in_them() -> None:
    solutions = chain_steps(count=300, seed=3)
    by_strategy = {s.meta["strategy"]: s for s in solutions}
    assert set(by_strategy["steps"].labels) == {"correct"}
    assert by_strategy["wrong"].labels[-1] == "wrong"
    corrected = by_strategy["corrected"]
    assert corrected.steps[corrected.labels.index("wrong") + 1] == "wait"
    assert corrected.labels[-1] == "correct"


def test_what_follows_a_wrong_step_of_the_toy_world_need_not_be_judged() -> None:
    """As in PRM800K: until a step is true again, which `wait` is, and what takes the wrong step back."""
    judged = {s.meta["strategy"]: s for s in chain_steps(count=300, difficulty=[3, 5], seed=3, inherited=False)}
    wrong, corrected = judged["wrong"].labels, judged["corrected"].labels
    first = wrong.index("wrong")
    assert wrong == ("correct",) * first + ("wrong",) + (None,) * (len(wrong) - first - 1)
    assert Counter(corrected) == {"correct": len(corrected) - 1, "wrong": 1}


def test_the_counts_of_prm800ks_phase_1_test_set(real_data: Path) -> None:
    """As the released rules give them on the real file. No merged pair goes on from a wrong step of the model's."""
    solutions = prm800k(path=str(real_data / "prm800k_phase1_test.jsonl"))
    kept = [solution for solution in solutions if examples("prm", solution)]
    made = Counter((e.made, e.label) for solution in kept for e in examples("hrm", solution, repaired=True))
    assert (len(solutions), len(kept)) == (106, 90)
    assert (made["step", 1.0], made["step", 0.0]) == (1861, 1310)
    assert (made["merged", 1.0], made["merged", 0.0]) == (1751, 1288)
    assert (made["repaired", 1.0], made["repaired", 0.0]) == (1296, 0)
    gone_on_from = [step.candidates[step.chosen] for s in kept for step in s.steps[:-1] if step.chosen is not None]
    assert {candidate.label for candidate in gone_on_from if not candidate.human} == {"correct"}


def test_math_shepherd_has_the_same_form(real_data: Path) -> None:
    made = [e for s in math_shepherd(path=str(real_data / "math_shepherd_samples.jsonl")) for e in examples("prm", s)]
    assert {e.label for e in made} == {0.0, 1.0}
