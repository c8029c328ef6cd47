"""PRM800K: human verdicts on each step of solutions to MATH problems (Lightman et al., 2023, arXiv 2305.20050).

At each step stand candidates of the model, rated 1, 0, -1 or not at all, and perhaps one that the annotator wrote. In phase 1
there are up to seven, and the annotator chose one to go on from. Phase 2 follows a solution made beforehand
(`pre_generated_steps`) up to its first error.
"""

from __future__ import annotations

from pathlib import Path

from rlcore.data.files import rows_named
from rlcore.data.rows import Row
from rlcore.data.steps import AnnotatedSolution, AnnotatedStep, Candidate, StepLabel

LABELS: dict[int, StepLabel] = {1: "correct", 0: "neutral", -1: "wrong"}
FINISH_REASONS = ("solution", "give_up", "found_error", "bad_problem")


def prm800k(*, path: str, limit: int | None = None) -> list[AnnotatedSolution]:
    """Both phases. `meta["finish_reason"]` says how a solution ended; all other fields of the row are in `meta` too."""
    return [_solution(row, f"{Path(path).stem}/{row.number}") for row in rows_named(path, limit)]


def _solution(row: Row, id: str) -> AnnotatedSolution:
    question, label = row.object("question"), row.object("label")
    if label.text("finish_reason") not in FINISH_REASONS:
        raise label.error(f"field 'finish_reason' is none of {', '.join(FINISH_REASONS)}")
    steps = tuple(map(_step, label.objects("steps")))
    end = next((i for i, step in enumerate(steps, 1) if step.chosen is None), len(steps))
    cut = {} if end == len(steps) else {"unusable": "it goes on after a step of which nothing was chosen"}
    return AnnotatedSolution(
        id=id,
        problem=question.text("problem"),
        answer=None if question.value("ground_truth_answer") is None else question.answer("ground_truth_answer"),
        steps=steps[:end],
        meta=row.without("question", "label")
        | question.without("problem", "ground_truth_answer")
        | label.without("steps")
        | cut,
    )


def _step(row: Row) -> AnnotatedStep:
    completions = () if row.value("completions") is None else row.objects("completions")
    candidates = [_candidate(completion, human=False) for completion in completions]
    chosen = None if row.value("chosen_completion") is None else row.of("chosen_completion", int)
    if chosen is not None and not 0 <= chosen < len(candidates):
        raise row.error(f"field 'chosen_completion' is {chosen}, and there are {len(candidates)} completions, from 0")
    if row.value("human_completion") is not None:
        # With a chosen completion beside it, it is a draft that the annotator gave up: the solution goes on from the other.
        candidates.append(_candidate(row.object("human_completion"), human=True))
        chosen = len(candidates) - 1 if chosen is None else chosen
    return AnnotatedStep(tuple(candidates), chosen)


def _candidate(row: Row, *, human: bool) -> Candidate:
    corrected = row.fields.get("corrected_rating") is not None
    return Candidate(
        text=row.string("text") if human else row.text("text"),
        label=_label(row, "corrected_rating" if corrected else "rating"),
        human=human,
        flagged=row.value("flagged") is not None and row.of("flagged", bool),
    )


def _label(row: Row, name: str) -> StepLabel | None:
    if row.value(name) is None:
        return None
    rating = row.of(name, int)
    if rating not in LABELS:
        raise row.error(f"field {name!r} is {rating}, which is none of 1, 0, -1 and null")
    return LABELS[rating]
