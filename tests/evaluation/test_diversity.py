"""How many different solutions there are."""

from __future__ import annotations

from rlcore.evaluation.diversity import diversity
from rlcore.evaluation.evaluate import Evaluation
from rlcore.types import Completion, Group, Invalid, Problem, Request, Sampling, Score, Scored


def group(name: str, texts: list[str]) -> Group:
    def said(i: int, text: str) -> Completion:
        return Request(name, i, 0, (1,), Sampling()).completed((2,), (0.0,), 0, "stop", text)

    return Group(Problem(name, "?", "1"), [said(i, text) for i, text in enumerate(texts)])


def test_texts_and_right_ones_are_counted_once_each() -> None:
    """First problem: three texts, a and b right, a twice. Second: one text, that no grader could judge the first time."""
    groups = [group("p", ["a", "b", "a", "c"]), group("q", ["d", "d", "d", "d"])]
    scores: list[list[Score]] = [
        [Scored(1.0), Scored(1.0), Scored(1.0), Scored(0.0)],
        [Invalid("down"), Scored(1.0), Scored(1.0), Scored(1.0)],
    ]
    assert diversity(Evaluation(groups, scores)) == {"distinct": 2.0, "distinct_correct": 1.5}
