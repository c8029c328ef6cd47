"""Step-labelled and preference data: what the readers make of real files, and what they say of rows that are not right."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlcore.data.preferences import Message, Preference
from rlcore.data.steps import AnnotatedSolution, AnnotatedStep, Candidate, LabelledSolution
from rlcore.errors import UserError
from rlcore.plugins import bind

MARK = "ки"


def read(name: str, path: Path, **options: Any) -> list[Any]:
    return bind("rlcore.data.formats", name, {"path": str(path), **options})()


def read_rows(name: str, folder: Path, *rows: Any) -> list[Any]:
    path = folder / "data.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return read(name, path)


def completion(text: str, rating: Any = 1, **more: Any) -> dict[str, Any]:
    return {"text": text, "rating": rating, "flagged": False, **more}


def step(*completions: Any, chosen: Any = 0, human: Any = None) -> dict[str, Any]:
    return {"completions": list(completions), "human_completion": human, "chosen_completion": chosen}


def prm800k_row(*steps: Any, answer: Any = "2", finish_reason: Any = "solution") -> dict[str, Any]:
    return {
        "labeler": "me",
        "question": {"problem": "What is 1+1?", "ground_truth_answer": answer},
        "label": {"steps": list(steps), "total_time": 7, "finish_reason": finish_reason},
    }


SHEPHERD = {"input": f"Q? Step 1: a. {MARK}\nStep 2: b. {MARK}", "label": "Q? Step 1: a. +\nStep 2: b. -", "task": "GSM8K"}
PROCESS = {
    "id": "gsm8k-0",
    "generator": "a-model",
    "problem": "Q?",
    "steps": ["a", "b", "c"],
    "final_answer_correct": False,
    "label": 1,
}
PRMBENCH = {
    "original_question": "Q?",
    "modified_question": "Q!",
    "original_process": ["a", "b"],
    "modified_process": ["a", "x", "y"],
    "modified_steps": [2, 3],
    "error_steps": [2],
    "reason": "x is not b",
    "idx": "p_0",
    "classification": "confidence",
}
USER, GOOD, BAD = ({"role": r, "content": c} for r, c in [("user", "Hi?"), ("assistant", "Hello."), ("assistant", "Go.")])
PAIR = {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go."}


def test_prm800k_keeps_every_candidate_with_its_label_and_gives_the_chosen_trajectory(tmp_path: Path) -> None:
    [solution] = read_rows(
        "prm800k",
        tmp_path,
        prm800k_row(
            step(completion("a"), completion("b", -1), completion("c", 0), chosen=2),
            step(completion("d", None, flagged=None), chosen=None, human=completion("e", None, source="human")),
            step(completion("f", -1, flagged=True), chosen=None),
            finish_reason="give_up",
        ),
    )
    assert solution == AnnotatedSolution(
        id="data/1",
        problem="What is 1+1?",
        answer="2",
        steps=(
            AnnotatedStep((Candidate("a", "correct"), Candidate("b", "wrong"), Candidate("c", "neutral")), chosen=2),
            AnnotatedStep((Candidate("d", None), Candidate("e", None, human=True)), chosen=1),
            AnnotatedStep((Candidate("f", "wrong", flagged=True),), chosen=None),
        ),
        meta={"labeler": "me", "total_time": 7, "finish_reason": "give_up"},
    )
    trajectory = LabelledSolution("data/1", "What is 1+1?", "2", ("c", "e"), ("neutral", "correct"), solution.meta)
    assert solution.trajectory == trajectory


def test_prm800k_takes_a_corrected_rating_for_the_rating_and_a_human_text_beside_a_choice_for_a_draft(tmp_path: Path) -> None:
    [solution] = read_rows(
        "prm800k",
        tmp_path,
        prm800k_row(
            step(completion("a", -1), chosen=None, human=completion("b", None, corrected_rating=-1)),
            step(completion("c", corrected_rating=None), chosen=0, human=completion("", None)),
            answer=None,
        ),
    )
    assert solution.answer is None
    assert solution.trajectory.steps == ("b", "c")
    assert solution.trajectory.labels == ("wrong", "correct")
    assert solution.steps[1].candidates[1] == Candidate("", None, human=True)


def test_prm800k_marks_a_solution_that_goes_on_after_nothing_was_chosen(tmp_path: Path) -> None:
    hole = step(completion("b", -1), chosen=None)
    [solution] = read_rows("prm800k", tmp_path, prm800k_row(step(completion("a")), hole, step(completion("c"))))
    assert len(solution.steps) == 2
    assert solution.meta["unusable"] == "it goes on after a step of which nothing was chosen"


def test_real_prm800k_phase_1_test_has_the_measured_facts(data_dir: Path) -> None:
    solutions = read("prm800k", data_dir / "prm800k_phase1_test.jsonl")
    assert Counter(s.meta["finish_reason"] for s in solutions) == {"solution": 90, "give_up": 16}
    assert len({s.problem for s in solutions}) == 101
    sampled = [c for s in solutions for step in s.steps for c in step.candidates if not c.human]
    assert Counter(c.label for c in sampled) == {"correct": 2245, "wrong": 1970, "neutral": 867, None: 110}
    assert sum(c.flagged for c in sampled) == 6
    assert round(sum(len(s.steps) for s in solutions) / len(solutions), 1) == 17.7
    assert not any("unusable" in s.meta for s in solutions)
    for solution in solutions:
        solved = solution.meta["finish_reason"] == "solution"
        assert len(solution.trajectory.steps) == len(solution.steps) - (not solved)
        assert not solved or "# Answer" in solution.trajectory.steps[-1]


def test_real_prm800k_candidates_give_the_published_numbers_of_step_and_merged_examples(data_dir: Path) -> None:
    """HRM's counts (arXiv 2503.13551, its released script): a candidate alone, and merged with the chosen step before it."""
    step_examples: Counter[str | None] = Counter()
    merged_examples: Counter[str | None] = Counter()
    before: Counter[str | None] = Counter()
    for solution in read("prm800k", data_dir / "prm800k_phase1_test.jsonl"):
        if solution.meta["finish_reason"] == "solution":
            for i, step in enumerate(solution.steps):
                labels = [c.label for c in step.candidates if not c.human and c.label in ("correct", "wrong")]
                step_examples.update(labels)
                if i > 0:
                    merged_examples.update(labels)
                    chosen = solution.steps[i - 1].candidates[solution.steps[i - 1].chosen]
                    before["human" if chosen.human else chosen.label] += len(labels)
    assert step_examples == {"correct": 1861, "wrong": 1310}
    assert merged_examples == {"correct": 1751, "wrong": 1288}
    assert before == {"correct": 2547, "human": 492}


def test_real_prm800k_annotators_steps_that_were_rated_later_are_nearly_all_wrong(data_dir: Path) -> None:
    """The only wrong steps in phase 1 that a solution goes on from: what a later step may recognise and repair."""
    solutions = read("prm800k", data_dir / "prm800k_phase1_test.jsonl")
    rated = [c.label for s in solutions for step in s.steps for c in step.candidates if c.human and c.label]
    assert sorted(rated) == ["correct", "wrong", "wrong", "wrong"]
    trajectories = Counter(label for s in solutions for label in s.trajectory.labels)
    assert trajectories == {"correct": 1241 + 269 + 90 + 3 + 173 + 81 - 3, "wrong": 3}


def test_real_prm800k_rows_of_both_phases_are_read(data_dir: Path) -> None:
    solutions = read("prm800k", data_dir / "prm800k_samples.jsonl")
    assert [s.meta["generation"] for s in solutions] == [None, 6, None, None, None, -1]
    endings = [s.meta["finish_reason"] for s in solutions]
    assert endings == ["solution", "found_error", "solution", "solution", "give_up", "solution"]
    wrong, unanswered = solutions[1], solutions[5]
    assert unanswered.answer is None
    made = wrong.meta["pre_generated_steps"]
    assert list(wrong.trajectory.steps) == made[:6]
    assert wrong.steps[6].candidates[0] == Candidate(made[6], "wrong")
    assert [c.label for c in wrong.steps[6].candidates[1:]] == ["correct"] * 3
    assert solutions[4].steps[-1] == AnnotatedStep((), None)  # completions: null


def test_math_shepherd_splits_problem_and_steps_and_reads_the_signs(tmp_path: Path) -> None:
    [solution] = read_rows("math_shepherd", tmp_path, SHEPHERD)
    steps = ("Step 1: a.", "Step 2: b.")
    assert solution == LabelledSolution("data/1", "Q?", None, steps, ("correct", "wrong"), {"task": "GSM8K"})
    assert solution.first_error == 1


def test_math_shepherd_signs_within_the_steps_are_no_labels(tmp_path: Path) -> None:
    row = {
        "input": f"Is 1 - 2 + 3 > 0? Step 1: 1 - 2 {MARK}\n + 3 {MARK}",
        "label": "Is 1 - 2 + 3 > 0? Step 1: 1 - 2 +\n + 3 -",
    }
    [solution] = read_rows("math_shepherd", tmp_path, SHEPHERD | row)
    assert solution.steps == ("Step 1: 1 - 2", "+ 3")
    assert solution.labels == ("correct", "wrong")


def test_math_shepherd_text_after_the_last_marker_is_a_step_without_label(tmp_path: Path) -> None:
    row = {"input": f"Q? Step 1: a. {MARK} Step 2: b.", "label": "Q? Step 1: a. + Step 2: b."}
    [solution] = read_rows("math_shepherd", tmp_path, SHEPHERD | row)
    assert solution.steps == ("Step 1: a.", "Step 2: b.")
    assert solution.labels == ("correct", None)


def test_math_shepherd_marks_a_row_with_a_marker_within_the_problem(tmp_path: Path) -> None:
    row = {"input": f"What {MARK} is 1+1? Step 1: 2. {MARK}", "label": "What + is 1+1? Step 1: 2. -"}
    [solution] = read_rows("math_shepherd", tmp_path, SHEPHERD | row)
    assert solution.meta["unusable"] == "there is no 'Step 1:' before the first marker"


def test_real_math_shepherd_rows_are_read(data_dir: Path) -> None:
    solutions = read("math_shepherd", data_dir / "math_shepherd_samples.jsonl")
    assert [len(s.steps) for s in solutions] == [5, 3, 2, 5, 5, 2, 3]
    assert [s.first_error for s in solutions] == [4, 0, 0, 0, 1, 0, 0]
    assert {s.meta["task"] for s in solutions} == {"GSM8K"}
    for solution in solutions:
        assert [text.split(":")[0] for text in solution.steps] == [f"Step {i}" for i in range(1, len(solution.steps) + 1)]
        assert solution.problem.endswith("?")
        assert not any(MARK in text for text in (solution.problem, *solution.steps))


@pytest.mark.parametrize(
    ("label", "labels"),
    [
        (-1, ("correct", "correct", "correct")),
        (0, ("wrong", None, None)),
        (1, ("correct", "wrong", None)),
        (2, ("correct", "correct", "wrong")),
    ],
)
def test_processbench_labels_the_steps_up_to_the_first_wrong_one(label: int, labels: tuple, tmp_path: Path) -> None:
    [solution] = read_rows("processbench", tmp_path, PROCESS | {"label": label})
    meta = {"generator": "a-model", "final_answer_correct": False}
    assert solution == LabelledSolution("processbench/gsm8k-0", "Q?", None, ("a", "b", "c"), labels, meta)
    assert solution.first_error == (None if label == -1 else label)


def test_prmbench_counts_error_steps_from_1_in_the_modified_process(tmp_path: Path) -> None:
    [solution] = read_rows("prmbench", tmp_path, PRMBENCH)
    assert solution.id == "prmbench/confidence/p_0"
    assert (solution.problem, solution.steps) == ("Q!", ("a", "x", "y"))
    assert solution.labels == ("correct", "wrong", "correct")
    assert (solution.meta["original_question"], solution.meta["original_process"]) == ("Q?", ("a", "b"))
    assert (solution.meta["classification"], solution.meta["reason"]) == ("confidence", "x is not b")


def test_real_prmbench_rows_that_name_steps_past_the_end_are_marked(data_dir: Path) -> None:
    for file, marked in [("confidence", 7), ("redundency", 2)]:
        solutions = read("prmbench", data_dir / f"prmbench_{file}.jsonl")
        assert len(solutions) == len({s.id for s in solutions}) == 90
        assert {s.meta["classification"] for s in solutions} == {file}
        reasons = Counter(s.meta["unusable"] for s in solutions if "unusable" in s.meta)
        assert reasons == {"an error step is past the last step": marked}
        for solution in solutions:
            wrong = [i for i, label in enumerate(solution.labels, 1) if label == "wrong"]
            assert (wrong == solution.meta["error_steps"]) == ("unusable" not in solution.meta)


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Hi?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
)
def test_every_shape_of_a_preference_pair_becomes_the_same(row: dict[str, Any], tmp_path: Path) -> None:
    pair = Preference("data/1", (Message("user", "Hi?"),), "Hello.", "Go.", {"score_chosen": 8.0})
    assert read_rows("preference_pairs", tmp_path, row | {"score_chosen": 8.0}) == [pair]


def test_a_preference_at_the_end_of_a_longer_conversation_keeps_all_that_comes_before(tmp_path: Path) -> None:
    opening = [{"role": "system", "content": "Be kind."}, USER, GOOD, {"role": "user", "content": "And now?"}]
    row = {"prompt": "And now?", "chosen": [*opening, GOOD], "rejected": [*opening, BAD]}
    [pair] = read_rows("preference_pairs", tmp_path, row)
    assert [message.role for message in pair.prompt] == ["system", "user", "assistant", "user"]
    assert pair.prompt[-1] == Message("user", "And now?")


def test_a_pair_of_equal_answers_is_marked_and_an_empty_answer_is_an_answer(tmp_path: Path) -> None:
    same, empty = read_rows("preference_pairs", tmp_path, PAIR | {"rejected": "Hello."}, PAIR | {"rejected": ""})
    assert same.meta["unusable"] == "chosen and rejected are the same"
    assert (empty.rejected, empty.meta) == ("", {})


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("prm800k", {"question": {}}, ":1: field 'label' is missing; the row has 'question'"),
        ("prm800k", {"question": "Q?", "label": {}}, ":1: field 'question' is not an object but str"),
        ("prm800k", prm800k_row(finish_reason="won"), ":1: label: field 'finish_reason' is none of solution, give_up"),
        ("prm800k", prm800k_row("a"), ":1: label: field 'steps[0]' is not an object but str"),
        (
            "prm800k",
            prm800k_row(step(completion("a")), step(completion("b"), completion("c", 2))),
            ":1: label: steps[1]: completions[1]: field 'rating' is 2, which is none of 1, 0, -1 and null",
        ),
        ("prm800k", prm800k_row(step(completion("a", True))), "completions[0]: field 'rating' is not an integer but bool"),
        ("prm800k", prm800k_row(step(completion("a", [1]))), "completions[0]: field 'rating' is not an integer but list"),
        ("prm800k", prm800k_row(step(completion("a", flagged=0))), "field 'flagged' is not true or false but int"),
        (
            "prm800k",
            prm800k_row(step({"rating": 1, "flagged": None})),
            "field 'text' is missing; the row has 'rating', 'flagged'",
        ),
        ("prm800k", prm800k_row(step(completion(" "))), "completions[0]: field 'text' is empty"),
        (
            "prm800k",
            prm800k_row(step(completion("a"), chosen=1)),
            "steps[0]: field 'chosen_completion' is 1, and there are 1 completions, from 0",
        ),
        ("prm800k", prm800k_row(step(completion("a"), chosen=-1)), "field 'chosen_completion' is -1, and there are 1"),
        ("prm800k", prm800k_row({"completions": []}), "steps[0]: field 'chosen_completion' is missing"),
        ("math_shepherd", SHEPHERD | {"input": "Q? Step 1: a."}, f":1: field 'input' has no step that ends with '{MARK}'"),
        (
            "math_shepherd",
            SHEPHERD | {"label": "Q? Step 1: a. +\nStep 2: c. -"},
            ":1: field 'label' has another text than field 'input' before marker 2 of 2",
        ),
        ("math_shepherd", SHEPHERD | {"label": "Q? Step 1: a. +"}, "another text than field 'input' before marker 2 of 2"),
        (
            "math_shepherd",
            SHEPHERD | {"label": "Q? Step 1: a. ?\nStep 2: b. -"},
            ":1: field 'label' has '?', neither + nor -, for marker 1 of 2",
        ),
        ("math_shepherd", SHEPHERD | {"label": "Q? Step 1: a. +\nStep 2: b."}, "before marker 2 of 2"),
        ("math_shepherd", SHEPHERD | {"label": SHEPHERD["label"] + " +"}, "than field 'input' after the last marker"),
        ("math_shepherd", {k: v for k, v in SHEPHERD.items() if k != "task"}, ":1: field 'task' is missing"),
        ("math_shepherd", SHEPHERD | {"label": None}, ":1: field 'label' is not a string but NoneType"),
        ("processbench", PROCESS | {"label": 3}, ":1: field 'label' is 3, neither -1 nor the index of one of the 3 steps"),
        ("processbench", PROCESS | {"label": -2}, ":1: field 'label' is -2, neither -1 nor"),
        ("processbench", PROCESS | {"label": "1"}, ":1: field 'label' is not an integer but str"),
        ("processbench", PROCESS | {"steps": "a"}, ":1: field 'steps' is not a list but str"),
        ("processbench", PROCESS | {"steps": []}, ":1: field 'steps' is empty"),
        ("processbench", PROCESS | {"steps": ["a", 2, "c"]}, ":1: field 'steps[1]' is not a string but int"),
        ("processbench", PROCESS | {"final_answer_correct": 1}, "field 'final_answer_correct' is not true or false but int"),
        ("prmbench", PRMBENCH | {"error_steps": [0, 1]}, ":1: field 'error_steps' holds 0, and steps are counted from 1"),
        ("prmbench", PRMBENCH | {"error_steps": ["2"]}, ":1: field 'error_steps[0]' is not an integer but str"),
        ("prmbench", PRMBENCH | {"modified_process": []}, ":1: field 'modified_process' is empty"),
        ("prmbench", {"idx": "p_0"}, ":1: field 'modified_process' is missing; the row has 'idx'"),
        (
            "preference_pairs",
            {"prompt": "Hi?", "chosen": "Hello."},
            ":1: field 'rejected' is missing; the row has 'prompt', 'chosen'",
        ),
        ("preference_pairs", {"chosen": "Hello.", "rejected": "Go."}, ":1: field 'prompt' is missing, and 'chosen' and"),
        ("preference_pairs", PAIR | {"prompt": " "}, ":1: field 'prompt' is empty"),
        ("preference_pairs", PAIR | {"chosen": []}, ":1: field 'chosen' is empty"),
        ("preference_pairs", PAIR | {"chosen": 7}, ":1: field 'chosen' is not a list but int"),
        (
            "preference_pairs",
            PAIR | {"chosen": [USER, GOOD]},
            ":1: fields 'chosen' and 'rejected' differ before their last messages",
        ),
        ("preference_pairs", {"chosen": [GOOD, USER], "rejected": [GOOD, BAD]}, "do not both end with what the assistant says"),
        (
            "preference_pairs",
            {"prompt": "Bye?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            ":1: field 'prompt' is not what 'chosen' and 'rejected' answer",
        ),
        (
            "preference_pairs",
            PAIR | {"chosen": [{"role": "bot", "content": ""}]},
            ":1: chosen[0]: field 'role' is 'bot', which is",
        ),
        ("preference_pairs", PAIR | {"chosen": [{"role": "user"}]}, ":1: chosen[0]: field 'content' is missing"),
    ],
)
def test_a_malformed_row_is_named_by_file_line_and_field(name: str, row: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_rows(name, tmp_path, row)
    assert str(error.value).startswith(f"{tmp_path}/data.jsonl:1: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["prm800k", "math_shepherd", "processbench", "prmbench", "preference_pairs"])
def test_garbage_is_refused_by_every_format(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.jsonl:1: not JSON: "):
        read_rows(name, tmp_path, '{"input": \n')
    with pytest.raises(UserError, match=r"data\.jsonl:1: field '\w+' is missing; the row has no fields"):
        read_rows(name, tmp_path, {})
    with pytest.raises(UserError, match="there is no 'prm8k' in rlcore/data/formats; did you mean 'prm800k'"):
        read("prm8k", tmp_path)


def test_a_relative_path_is_looked_up_in_the_data_folder_and_limit_reads_the_first_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("RLCORE_DATA_DIR", str(tmp_path / "data"))
    read_rows("processbench", tmp_path / "data", PROCESS, PROCESS | {"id": "gsm8k-1"})
    assert len(read("processbench", Path("data.jsonl"))) == 2
    assert [s.id for s in read("processbench", Path("data.jsonl"), limit=1)] == ["processbench/gsm8k-0"]
    read_rows("processbench", tmp_path / "here", PROCESS | {"id": "mine"})
    assert [s.id for s in read("processbench", Path("data.jsonl"))] == ["processbench/mine"]
    with pytest.raises(UserError, match=rf"{tmp_path}/data/none\.jsonl: there is no such file"):
        read("processbench", Path("none.jsonl"))
    with pytest.raises(UserError, match=rf"{tmp_path}/none\.jsonl: there is no such file"):
        read("processbench", tmp_path / "none.jsonl")


def test_a_solution_with_other_than_one_label_a_step_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="a has 1 labels for 2 steps"):
        LabelledSolution("a", "Q?", None, ("x", "y"), ("correct",))


@pytest.mark.parametrize("chosen", [-1, 1])
def test_a_step_cannot_have_a_chosen_candidate_that_it_does_not_have(chosen: int) -> None:
    with pytest.raises(ValueError, match="was chosen of 1"):
        AnnotatedStep((Candidate("x", "correct"),), chosen)


def test_a_solution_cannot_go_on_after_a_step_of_which_nothing_was_chosen() -> None:
    undecided = AnnotatedStep((Candidate("x", "wrong"),), None)
    assert AnnotatedSolution("a", "Q?", None, (undecided,)).trajectory.steps == ()
    with pytest.raises(ValueError, match="goes on"):
        AnnotatedSolution("a", "Q?", None, (undecided, undecided))
