"""Best-of-N by hand: from whole solutions against all subsets, step by step on a scripted engine, and the command."""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from rewards.judge import Judge
from rewards.judged_text import Asked
from rlcore.cli import main as cli
from rlcore.errors import UserError
from rlcore.evaluation.best_of_n import AGGREGATES, Pool, best_of, bounds, expected_best, solution_scores, steps_of
from rlcore.evaluation.stepwise import Begun, Candidates, stepwise
from rlcore.prompts import Prompter
from rlcore.protocols import Progress, no_progress
from rlcore.recipe.schema import Prompt
from rlcore.types import Problem, Request, Sampling
from rollout.scripted import Scripted

PROBLEM = Problem("p", "1+1=?", "2")


class Likes(Judge):
    """Gives each text of what is judged its number; what it was asked."""

    def __init__(self, numbers: Mapping[str, float], of_solutions: bool = False) -> None:
        self.numbers, self.of_solutions = numbers, of_solutions
        self.asked: list[Asked] = []

    def log_odds(self, asked: Sequence[Asked], progress: Progress = no_progress) -> list[float | None]:
        self.asked += asked
        return [self.numbers[" ".join(each.current)] for each in asked]


class Lines(Judge):
    """It learned steps that are lines, and is asked about none."""

    steps_end_with = "\n"

    def log_odds(self, asked: Sequence[Asked], progress: Progress = no_progress) -> list[float | None]:
        raise AssertionError


# -- whole solutions -----------------------------------------------------------------------------------------------------------


def test_the_best_of_all_subsets_and_ties_share() -> None:
    assert expected_best([3, 2, 2], [0, 0, 1], 2) == pytest.approx(1 / 6)
    assert expected_best([3, 2, 2], [0, 0, 1], 1) == pytest.approx(1 / 3)
    rng = random.Random(0)
    for n in (1, 2, 3, 6):
        pool = [(rng.randrange(4), float(rng.randrange(2))) for _ in range(6)]
        tops = [[right for score, right in some if score == max(some)[0]] for some in itertools.combinations(pool, n)]
        mean = sum(sum(top) / len(top) for top in tops) / len(tops)
        assert expected_best([score for score, _ in pool], [right for _, right in pool], n) == pytest.approx(mean)


def pool(correct: Sequence[float], answers: str = "") -> Pool:
    return Pool(PROBLEM, [], correct, list(answers))


def test_a_curve_is_the_mean_over_problems() -> None:
    curve = best_of([pool([1, 0]), pool([1, 0])], [[1.0, 0.0], [0.0, 1.0]], [1, 2])
    assert {n: estimate.value for n, estimate in curve.items()} == {1: 0.5, 2: 0.5}
    assert best_of([pool([1, 0])], [[1.0, 0.0]], [2])[2].value == 1


def test_what_is_reached_without_a_reward_model() -> None:
    """Of `aab` and `bba` one vote is right; of the four pairs in order, ab ab, half of each."""
    without = bounds([pool([1, 1, 0, 0], "aabb"), pool([1, 0, 0, 0], "abbb")], [1, 2, 4])
    assert without["pass"][2].value == pytest.approx((5 / 6 + 1 / 2) / 2)
    # parts of two: aa, bb: ½; ab, bb: ¼. Of four: aabb is a tie, abbb is lost
    assert without["majority"][2].value == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert without["majority"][4].value == pytest.approx((1 / 2 + 0) / 2)
    assert without["majority"][1].value == without["pass"][1].value == pytest.approx(3 / 8)


@pytest.mark.parametrize(
    ("aggregate", "score"),
    [
        ("min", -1.0),
        ("last", 0.0),
        ("product", math.log(1 / (1 + math.exp(-2.0)) * 1 / (1 + math.exp(1.0)) * 0.5)),
        ("soft_min", math.tanh(-0.5)),  # the lowest alone, to 1e-2: the next is 4.6 temperatures above it
    ],
)
def test_the_score_of_a_solution_from_those_of_its_steps(aggregate: str, score: float) -> None:
    assert AGGREGATES[aggregate]([2.0, -1.0, 0.0]) == pytest.approx(score, abs=1e-2 if aggregate == "soft_min" else 1e-9)
    assert math.isfinite(AGGREGATES[aggregate]([1000.0, -1000.0]))


def test_steps_are_asked_after_those_before_them_and_each_once() -> None:
    judge = Likes({"a": 1.0, "b": 0.5, "c": -1.0})
    asked = [("Q", ("a", "b")), ("Q", ("a", "c")), ("Q", ("a", "b")), ("Q", ())]
    assert solution_scores(judge, asked, "min") == [0.5, -1.0, 0.5, -math.inf]
    assert judge.asked == [Asked("Q", (), ("a",)), Asked("Q", ("a",), ("b",)), Asked("Q", ("a",), ("c",))]


def test_a_judge_of_solutions_is_asked_for_the_whole() -> None:
    judge = Likes({"a b": 3.0}, of_solutions=True)
    assert solution_scores(judge, [("Q", ("a", "b")), ("Q", ())], "min") == [3.0, -math.inf]
    assert judge.asked == [Asked("Q", (), ("a", "b"))]


def test_blank_steps_are_none() -> None:
    assert steps_of("a\n\n\n\nb\n\n", "\n\n") == ("a", "b")


# -- step by step --------------------------------------------------------------------------------------------------------------

SAID = {  # what is offered, number by number, after what stands
    "": ["1\n", "2\n", "3\n"],
    "1\n": ["#### 1", "#### 2", "4\n"],
    "2\n": ["#### 1", "5\n", "#### 2"],
    "3\n": ["#### 2", "#### 1", "#### 1"],
    "2\n5\n": ["#### 2", "#### 1", "#### 3"],
}
LIKED = {"1": 0.0, "2": 1.0, "3": 2.0, "4": 9.0, "5": 3.0, "#### 1": 1.0, "#### 2": 2.0, "#### 3": 2.0}


def candidates(tokenizer: PreTrainedTokenizerBase, **sampling: int) -> tuple[Candidates, list[Request]]:
    asked: list[Request] = []
    prompter = Prompter(Prompt(), tokenizer)
    begin = len(prompter.render(PROBLEM))

    def script(request: Request) -> str:
        asked.append(request)
        return SAID[tokenizer.decode(request.prompt_ids[begin:])][request.sample]

    return Candidates(Scripted(tokenizer, script), prompter, Sampling(**sampling), "\n", seed=0), asked


def test_the_liked_candidate_is_gone_on_from(tokenizer: PreTrainedTokenizerBase) -> None:
    """Of one candidate: 1. Of two, 2 is liked more, then 5, then the first of the two answers. Of three: 3."""
    offered, asked = candidates(tokenizer)
    solved = stepwise(offered, Likes(LIKED), [PROBLEM], [1, 2, 3], height=9)
    texts = {n: offered.completion(begun, n) for n, [begun] in solved.items()}
    assert {n: completion.text for n, completion in texts.items()} == {1: "1\n#### 1", 2: "2\n5\n#### 2", 3: "3\n#### 2"}
    assert all(completion.finish_reason == "stop" for completion in texts.values())
    assert solved[2][0].steps == ("2", "5", "#### 2")
    assert len(asked) == 3 + 1 + 2 + 3 + 2  # at each place what the largest number that came there asked for
    assert len({request.seed for request in asked}) == len(asked)
    before = len(asked)
    assert stepwise(offered, Likes(LIKED), [PROBLEM], [2], height=9)[2] == solved[2]
    assert len(asked) == before  # another who comes the same way meets the same candidates


def test_candidates_that_are_liked_alike_leave_it_to_the_first(tokenizer: PreTrainedTokenizerBase) -> None:
    offered, _ = candidates(tokenizer)
    [begun] = stepwise(offered, Likes(dict.fromkeys(LIKED, 0.0)), [PROBLEM], [3], height=9)[3]
    assert begun.steps == ("1", "#### 1")


def test_a_candidate_that_says_nothing_is_taken_only_where_all_do(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is nothing that a judge could be asked about."""
    monkeypatch.setitem(SAID, "", [" \n", "1\n", "\n"])
    monkeypatch.setitem(SAID, " \n", ["#### 2"])
    for n, steps in ((1, ("#### 2",)), (2, ("1", "4"))):
        offered, _ = candidates(tokenizer)
        monkeypatch.setitem(SAID, "1\n", ["#### 1", "4\n"])
        [begun] = stepwise(offered, Likes(LIKED), [PROBLEM], [n], height=2)[n]
        assert begun.steps == steps


def test_a_solution_that_does_not_end_is_cut_off(tokenizer: PreTrainedTokenizerBase) -> None:
    """By the number of steps, and by the tokens of all of them: `2⏎5⏎` are four."""
    offered, _ = candidates(tokenizer)
    [begun] = stepwise(offered, Likes(LIKED), [PROBLEM], [2], height=2)[2]
    assert (begun.ended, offered.completion(begun, 0).finish_reason) == (None, "length")
    offered, asked = candidates(tokenizer, max_new_tokens=4)
    [begun] = stepwise(offered, Likes(LIKED), [PROBLEM], [2], height=9)[2]
    assert (begun.steps, begun.ended) == (("2", "5"), "length")
    assert {request.sampling.max_new_tokens for request in asked} == {4, 2}


def test_begun_solutions_of_the_same_text_share_their_candidates(tokenizer: PreTrainedTokenizerBase) -> None:
    offered, asked = candidates(tokenizer)
    few, many = offered.after([(Begun(PROBLEM), 1), (Begun(PROBLEM), 3)])
    assert few == many[:1]
    assert len(asked) == 3


# -- the command ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def measure(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    def run(verb: str, *options: str) -> dict:
        asked = ["--policy", str(tiny), "--data", "{name: chain, count: 3}", "--max-new-tokens", "12", "--separator", "\\n"]
        file = tmp_path / "result.json"
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["rlcore", "reward", verb, *asked, *options, "--json", str(file)])
            with pytest.raises(SystemExit) as ended:
                cli.app()
            assert not ended.value.code
        return json.loads(file.read_text())

    return run


def test_the_command_sets_reward_models_side_by_side(measure: Callable[..., dict], tmp_path: Path) -> None:
    options = ("--judge", "truth={name: chain_truth}", "--judge", "again={name: chain_truth}", "--n", "1,4")
    result = measure("best-of-n", *options, "--plot", str(tmp_path / "curves.svg"))
    assert set(result["judges"]["truth"]) == {"whole", "stepwise"}
    assert result["judges"]["truth"] == result["judges"]["again"]
    assert set(result["judges"]["truth"]["whole"]) == set(result["pass"]) == {"1", "4"}
    assert (result["problems"], result["samples"]) == (3, 4)
    assert "step by step" in (tmp_path / "curves.svg").read_text()
    assert measure("best-of-n", *options)["judges"] == result["judges"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--judge", "runs/prm"), "give it a name"),
        (("--judge", "a={name: chain_truth}", "--n", "1,0"), "--n '1,0' is no list of positive numbers"),
        (("--judge", "a={name: chain_truth}", "--method", "beam"), "--method: there is no 'beam'"),
        (("--judge", "a={name: chain_truth}", "--aggregate", "lst"), "did you mean 'last'"),
        (("--judge", "a={name: chain_truth}", "--separator", ""), "--separator"),
        (("--judge", "a={name: chain_truth}") * 2, "--judge: two have one name"),
        (("--judge", f"a={{name: {__name__}:Lines}}"), "set the separator to '\\n'"),
        (("--judge", "a=[1]"), "neither a folder nor a YAML mapping"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_options_that_mean_nothing_are_refused(options: tuple[str, ...], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["rlcore", "reward", "best-of-n", "--policy", "p", "--data", "chain", *options])
    with pytest.raises(UserError) as refused:
        cli.app()
    assert named in str(refused.value)
