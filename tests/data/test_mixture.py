"""The mixture: weights, epochs, resuming, and what is dropped and said."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlcore.data.mixture import Mixture, load
from rlcore.errors import UserError
from rlcore.recipe.schema import Source
from rlcore.types import Problem


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """`source("a", 10)` is a source of ten problems, `a0?` to `a9?`."""

    def make(name: str, size: int, weight: float = 1.0, folder: str = "") -> Source:
        path = tmp_path / folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"prompt": f"{name}{i}?", "answer": str(i)}) + "\n" for i in range(size)))
        return Source(name="file", path=str(path), weight=weight)

    return make


def prompts(problems: list[Problem]) -> list[str]:
    return [problem.prompt for problem in problems]


def test_the_same_seed_draws_the_same_however_the_draws_are_cut(source: Any) -> None:
    sources = [source("a", 50, 2.0), source("b", 50)]
    whole = Mixture(sources, seed=1).next(60)
    cut = Mixture(sources, seed=1)
    assert [p for n in (1, 9, 20, 30) for p in cut.next(n)] == whole
    assert Mixture(sources, seed=2).next(60) != whole


@pytest.mark.parametrize("steps_before", [0, 1, 3, 7, 20])
def test_a_restored_mixture_goes_on_exactly(source: Any, steps_before: int) -> None:
    """Seven a step from sources of 9 and 23: epochs end within steps, so that the cursor carries all that it must."""
    sources = [source("a", 9, 3.0), source("b", 23)]
    unbroken, broken = Mixture(sources, seed=5), Mixture(sources, seed=5)
    for _ in range(steps_before):
        unbroken.next(7)
        broken.next(7)
    resumed = Mixture(sources, seed=5)
    resumed.restore(json.loads(json.dumps(broken.state())))
    for _ in range(20):
        assert resumed.next(7) == unbroken.next(7)
    assert resumed.state() == unbroken.state()


def test_checkpoints_do_not_read_all_problems_again(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture, read = Mixture([source("a", 9)], seed=5), []
    problems = Mixture.problems.fget
    monkeypatch.setattr(Mixture, "problems", property(lambda self: read.append(1) or problems(self)))
    states = [mixture.state() for _ in range(3)]
    mixture.restore(states[0])
    assert states[0] == states[1] == states[2]
    assert len(read) == 1


@pytest.mark.parametrize("change", ["rows", "answers", "weight", "seed"])
def test_a_mixture_of_other_data_is_not_resumed(source: Any, change: str) -> None:
    state = Mixture([source("a", 9)], seed=5).state()
    changed = source("a", 10 if change == "rows" else 9, 2.0 if change == "weight" else 1.0)
    if change == "answers":
        path = Path(changed.options["path"])
        path.write_text(path.read_text().replace('"answer": "3"', '"answer": "4"'))
    with pytest.raises(UserError, match="have changed since the checkpoint"):
        Mixture([changed], seed=6 if change == "seed" else 5).restore(state)


@pytest.mark.parametrize("n", [1, 4, 7, 10])
def test_no_problem_comes_twice_in_a_step_and_each_comes_once_in_an_epoch(source: Any, n: int) -> None:
    mixture = Mixture([source("a", 10)], seed=0)
    drawn: list[str] = []
    for _ in range(30):
        step = prompts(mixture.next(n))
        assert len(set(step)) == n
        drawn += step
    epochs = [drawn[i : i + 10] for i in range(0, len(drawn) - 9, 10)]
    assert all(len(set(epoch)) == 10 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # shuffled anew


def test_a_source_smaller_than_a_step_repeats_evenly(source: Any) -> None:
    counts = Counter(prompts(Mixture([source("a", 3)], seed=0).next(8)))
    assert sorted(counts.values()) == [2, 3, 3]


def test_weights_are_respected(source: Any) -> None:
    """3 : 1 in 4000 draws: 3000 ± 4 standard deviations of 27; and as draws are independent, 3/8 of them change the source."""
    drawn = [p.prompt[0] for p in Mixture([source("a", 500, 3.0), source("b", 500)], seed=0).next(4000)]
    assert abs(drawn.count("a") - 3000) < 110
    assert abs(sum(one != other for one, other in itertools.pairwise(drawn)) - 1500) < 150


def test_repeats_within_a_source_are_dropped_and_counted_and_across_sources_kept(source: Any, tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    rows = [{"prompt": text, "answer": "1"} for text in ("What is 3 - 2?", "what is 3-2", "What is 3 + 2?", "a0?")]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    mixture = Mixture([Source(name="file", path=str(path), weight=0.5), source("a", 2)], seed=0)
    assert mixture.describe() == [
        "file (weight 0.5): 4 problems read, 3 kept, 1 dropped: repeats an earlier problem",
        "file (weight 1): 2 problems read, 2 kept",
    ]
    assert prompts(mixture.problems) == ["What is 3 - 2?", "What is 3 + 2?", "a0?", "a0?", "a1?"]
    assert len(load([Source(name="file", path=str(path))])) == 4


def test_problems_that_cannot_be_graded_are_dropped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "math.json"
    path.write_text(json.dumps([{"problem": f"{i}?", "final_answer": "1" if i else ""} for i in range(3)]))
    sources = [Source(name="math", path=str(path))]
    assert Mixture(sources, seed=0).describe() == ["math (weight 1): 3 problems read, 2 kept, 1 dropped: no final answer"]
    with caplog.at_level(logging.WARNING):
        assert [p.id for p in load(sources)] == ["math/train/2", "math/train/3"]
    assert caplog.messages == ["math: 1 dropped: no final answer"]
    path.write_text(json.dumps([{"problem": "0?", "final_answer": ""}]))
    with pytest.raises(UserError, match="'math' has no problem that can be graded: no final answer"):
        Mixture(sources, seed=0)


def test_load_keeps_the_order_and_tells_equal_ids_apart(source: Any) -> None:
    sources = [source("a", 2), source("b", 1), source("a", 2, folder="other")]
    assert [p.id for p in load(sources)] == ["file/a/1", "file/a/2", "file/b/1", "file#3/file/a/1", "file#3/file/a/2"]
    assert len({p.id for p in Mixture(sources, seed=0).problems}) == 5


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("file", {}, "'file' needs the option 'path'"),
        ("file", {"paht": "x"}, "'file' has no option 'paht'; did you mean 'path'?"),
        ("gsm9k", {}, "there is no 'gsm9k' in rlcore/data/sources; did you mean 'gsm8k'?"),
        ("own_source:twice", {}, "source 'own_source:twice' gives the id '1' to 2 problems"),
        ("own_source:nothing", {}, "source 'own_source:nothing' has no problem that can be graded"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(
    name: str, options: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_source.py").write_text(
        "from rlcore.types import Problem\n\n"
        "def twice():\n    return [Problem('1', 'a', '1'), Problem('1', 'b', '1')]\n\n"
        "def nothing():\n    return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as error:
        load([Source(name=name, **options)])
    assert str(error.value) == says


@pytest.mark.usefixtures("real_data")
def test_real_math_has_two_problems_without_answer_and_two_that_come_again() -> None:
    assert Mixture([Source(name="math"), Source(name="gsm8k")], seed=0).describe() == [
        "math (weight 1): 7500 problems read, 7496 kept, 2 dropped: no final answer, 2 dropped: repeats an earlier problem",
        "gsm8k (weight 1): 7473 problems read, 7473 kept",
    ]
