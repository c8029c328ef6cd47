"""Early rejection by hand: what is saved, what is lost, and where solutions are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from rlcore.evaluation.best_of_n import Pool
from rlcore.evaluation.early_rejection import cut_at, early_rejection, rejected
from rlcore.types import Completion, Problem, Request, Sampling
from tests.evaluation.test_best_of_n import Likes, measure  # noqa: F401  (a fixture)

PROBLEM = Problem("p", "1+1=?", "2")


def said(tokenizer: PreTrainedTokenizerBase, text: str) -> Completion:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return Request("p", 0, 0, (1,), Sampling()).completed(ids, (0.0,) * len(ids), 0, "stop", text)


@pytest.mark.parametrize(
    ("count", "unit", "cut"), [(3, "tokens", 3), (99, "tokens", 7), (1, "steps", 3), (2, "steps", 6), (3, "steps", 7)]
)
def test_where_a_solution_is_cut(tokenizer: PreTrainedTokenizerBase, count: int, unit: str, cut: int) -> None:
    """`12⏎34⏎5`: seven tokens; a step has ended with its separator."""
    assert cut_at(said(tokenizer, "12\n34\n5"), count, unit, "\n", tokenizer) == cut  # type: ignore[arg-type]


def test_what_is_saved_and_lost(tokenizer: PreTrainedTokenizerBase) -> None:
    """Of four solutions of four tokens two are kept after the first: 6 of 16 tokens are saved. In the second problem the one
    that would have been the best is among the rejected ones."""
    four = [said(tokenizer, "1234")] * 4
    pools = [Pool(PROBLEM, four, [1, 0, 0, 0], list("abcd")), Pool(PROBLEM, four, [0, 0, 0, 1], list("abcd"))]
    partial, final = [[4.0, 3, 2, 1], [4.0, 3, 2, 1]], [[4.0, 3, 2, 1], [1.0, 2, 3, 4]]
    found = rejected(pools, partial, final, [[1] * 4] * 2, after=1, keep=0.5)
    assert (found.saved, found.accuracy.value, found.lost.value) == (6 / 16, 0.5, 0.5)
    assert found.correlation == pytest.approx(0)
    assert found.lost.high == pytest.approx(0.5 + 1.959964 * 0.5)  # s = 1/√2 of 0 and 1, over √2
    everything = rejected(pools, partial, final, [[1] * 4] * 2, after=1, keep=1)
    assert (everything.saved, everything.lost.value) == (0, 0)


def test_from_solutions_to_what_came_of_it(tokenizer: PreTrainedTokenizerBase) -> None:
    """The judge likes a, so the solution that turns bad after it is kept, and the one that was bad from the start is not."""
    texts = ["b\na", "a\nb", "a\na"]
    pools = [Pool(PROBLEM, [said(tokenizer, text) for text in texts], [0, 0, 1], list("123"))]
    judge = Likes({"a": 1.0, "b": -1.0})
    final, [found] = early_rejection(
        pools, judge, tokenizer, after=[1], unit="steps", keep=[0.5], separator="\n", aggregate="min"
    )
    assert final == [[-1.0, -1.0, 1.0]]
    assert (found.saved, found.accuracy.value, found.lost.value) == (pytest.approx(1 / 9), 1, 0)


def test_the_command(measure, tmp_path: Path) -> None:  # noqa: F811
    options = ("--judge", "{name: chain_truth}", "--samples", "4", "--after", "2,4", "--unit", "tokens", "--keep", "0.5")
    result = measure("early-rejection", *options, "--plot", str(tmp_path / "saved.svg"))
    assert [each["after"] for each in result["rejections"]] == [2, 4]
    assert result["rejections"][0]["saved"] > result["rejections"][1]["saved"] > 0
    assert set(result["fewer"]) == {"1", "2", "3", "4"}
    assert "share of tokens saved" in (tmp_path / "saved.svg").read_text()
