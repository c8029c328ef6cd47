"""Trees that grow over an engine: exact ones from a script, the same whatever grows beside them; and the job around them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from rlcore import jobs
from rlcore.data.trees import Tree, read_trees
from rlcore.errors import UserError
from rlcore.grading.pool import Grader
from rlcore.models import ModelSpec
from rlcore.preview import preview
from rlcore.prompts import Prompter
from rlcore.recipe.load import load
from rlcore.recipe.schema import Prompt
from rlcore.types import Problem, Request, Sampling, Verdict
from rollout.engines.transformers import Transformers
from rollout.growing import Cost, Grower
from rollout.scripted import Scripted
from rollout.searches.full_tree import FullTree
from rollout.searches.uct import Uct
from tests.conftest import broken_off

PROBLEM = Problem("p", "1+1=?", "2")
TREE = {  # what the children of a node say, by what was said before
    "": ["1+1=2\n", "#### 3"],
    "1+1=2\n": ["#### 2", "so\n"],
    "1+1=2\nso\n": ["#### 2\n", "#### 4\n"],
}


def grower(tokenizer: PreTrainedTokenizerBase, said: dict[str, list[str]], **sampling: Any) -> Grower:
    """Over an engine that says what `said` has, child by child, and `#### 2` where it has nothing."""
    prompter = Prompter(Prompt(), tokenizer)

    def script(request: Request) -> str:
        before = tokenizer.decode(request.prompt_ids[len(prompter.render(PROBLEM)) :])
        lines = said.get(before, ["#### 2"])
        return lines[request.sample % len(lines)]

    return Grower(Scripted(tokenizer, script), prompter, by_the_end, Sampling(**sampling), "\n", seed=0)


def by_the_end(asked: Sequence[tuple[Problem, str, bool]]) -> list[Verdict]:
    """Right where the right answer is the last line, invalid where there is a question mark."""
    return [
        Verdict("invalid", "asked back") if "?" in text else Verdict("correct" if text.strip().endswith("#### 2") else "wrong")
        for _, text, _ in asked
    ]


def told(tree: Tree) -> list[tuple[str, int, int, bool]]:
    return [(" ".join(tree.steps_to(i)), node.visits, node.correct, node.ends) for i, node in enumerate(tree.nodes)]


def test_a_full_tree_by_hand(tokenizer: PreTrainedTokenizerBase) -> None:
    """At the last level nothing has ended: what states the answer is right, what does not is wrong."""
    growing = grower(tokenizer, TREE)
    [tree] = FullTree(children=2, depth=3).grow(growing, [PROBLEM])
    assert told(tree) == [
        ("", 4, 2, False),
        ("1+1=2", 3, 2, False),
        ("#### 3", 1, 0, True),
        ("1+1=2 #### 2", 1, 1, True),
        ("1+1=2 so", 2, 1, False),
        ("1+1=2 so #### 2", 1, 1, False),
        ("1+1=2 so #### 4", 1, 0, False),
    ]
    assert growing.counts == {"completions": 6, "tokens": 19, "correct": 2, "wrong": 2, "invalid": 0}
    [low] = FullTree(children=2, depth=1).grow(growing, [PROBLEM])
    assert told(low) == [("", 2, 0, False), ("1+1=2", 1, 0, False), ("#### 3", 1, 0, True)]


def test_a_solution_may_be_cut_stopped_or_say_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    said = {"": ["\n", "0123456789"], "\n": ["12stop\n", "?"]}
    growing = grower(tokenizer, said, max_new_tokens=8, stop=("stop",))
    [tree] = FullTree(children=2, depth=3).grow(growing, [PROBLEM])
    assert told(tree) == [
        ("", 2, 0, False),
        ("", 1, 0, False),  # a blank step, which was gone on from
        ("01234567", 1, 0, False),  # the token limit is a whole solution's
        ("12", 1, 0, True),
        ("?", 0, 0, True),  # the grader could not judge it
    ]
    assert growing.failures == {"asked back": 1}


def test_uct_by_hand(tokenizer: PreTrainedTokenizerBase) -> None:
    """Three rounds of two children and two rollouts each. `a` promises as much as `b` and is first; below it everything ends,
    so the third round is `b`'s, whatever its score. A step that ends the solution counts twice."""
    said = {"": ["a\n", "b\n"], "a\n": ["#### 2", "#### 3"], "b\n": ["#### 3", "c\n"], "b\nc\n": ["#### 2", "#### 3"]}
    growing = grower(tokenizer, said)
    trees = [Uct(children=2, depth=2, rounds=rounds, rollouts=2).grow(growing, [PROBLEM])[0] for rounds in (1, 2, 3, 9)]
    below_a = [("a #### 2", 2, 2, True), ("a #### 3", 2, 0, True)]
    below_b = [("b #### 3", 2, 0, True), ("b c", 2, 1, False)]
    assert told(trees[0]) == [("", 4, 1, False), ("a", 2, 1, False), ("b", 2, 0, False)]
    assert told(trees[1]) == [("", 8, 3, False), ("a", 6, 3, False), ("b", 2, 0, False), *below_a]
    assert told(trees[2]) == [("", 12, 4, False), ("a", 6, 3, False), ("b", 6, 1, False), *below_a, *below_b]
    assert told(trees[3]) == told(trees[2])  # the depth leaves nothing to expand


@pytest.mark.parametrize(("c", "visits"), [(0.0, [10, 9, 1]), (1.414, [10, 7, 3]), (10.0, [10, 5, 5])])
def test_uct_looks_the_more_where_little_is_known_the_higher_c_is(
    c: float, visits: list[int], tokenizer: PreTrainedTokenizerBase
) -> None:
    """What begins with `a` is right. With √2, the fourth of five rounds is b's: 0 + √2·√(ln 6 / 1) > 1 + √2·√(ln 6 / 5)."""
    growing = grower(tokenizer, {"": ["a\n", "b\n"]})
    growing.grade = lambda asked: [Verdict("correct" if text.startswith("a") else "wrong") for _, text, _ in asked]
    growing.engine.script = lambda request: "ab"[request.sample % 2] + "\n"  # type: ignore[attr-defined]
    [tree] = Uct(children=2, rounds=5, depth=9, c=c).grow(growing, [PROBLEM])
    assert [node.visits for node in tree.nodes[:3]] == visits


def test_costs() -> None:
    """The released full tree, and UCT with two rollouts, of solutions of 100 tokens."""
    assert FullTree().cost(100) == Cost(3905, 3905, 312_500)
    assert Uct(children=3, rounds=12, rollouts=2).cost(100) == Cost(36, 108, 7200)


@pytest.mark.parametrize("search", [FullTree(children=3, depth=3), Uct(rounds=4)])
def test_a_tree_does_not_depend_on_what_grows_beside_it(
    search: FullTree | Uct, tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = Transformers(tiny_spec, tokenizer, [tokenizer.eos_token_id], batch_size=7)
    problems = [Problem(f"p{i}", f"{i}+1=?", f"{i + 1}") for i in range(3)]

    def trees(of: Sequence[Problem]) -> list[Tree]:
        growing = Grower(engine, Prompter(Prompt(), tokenizer), by_the_end, Sampling(max_new_tokens=30), "e", seed=2)
        return search.grow(growing, of)

    together = trees(problems)
    assert trees(problems[1:2]) == together[1:2]
    assert len({tuple(node.steps for node in tree.nodes) for tree in together}) == 3
    assert max(max(tree.heights) for tree in together) > 1


# -- the job -----------------------------------------------------------------------------------------------------------------


def arguments(tiny: Path, folder: Path, *overrides: str) -> list[str]:
    small = ["search={children: 2, depth: 2}", "rollout.max_new_tokens=12", "data.count=5", "at_once=2", "threads=1"]
    return ["annotate_chain", f"model={tiny}", f"output={folder}", *small, *overrides]


def annotated(tiny: Path, folder: Path, *overrides: str, resume: bool = False) -> dict[str, Any]:
    return jobs.run(load(arguments(tiny, folder, *overrides)), resume)


def test_the_shipped_recipe_writes_a_tree_a_problem(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = annotated(tiny, tmp_path / "run")
    trees = read_trees(str(tmp_path / "run" / "trees.jsonl"))
    assert [tree.id for tree in trees] == [f"chain/train/{i}" for i in range(5)]
    assert summary["trees"] == 5
    assert summary["nodes"] == summary["completions"] == sum(len(tree.nodes) - 1 for tree in trees)
    assert summary["correct"] + summary["wrong"] == sum(tree.nodes[0].visits for tree in trees)
    assert summary["nodes_per_second"] == pytest.approx(summary["nodes"] / summary["seconds"])
    said = capsys.readouterr().err
    assert "nodes: at most 6 a tree, 30 in all" in said
    assert "minutes for the other 3" in said
    assert said.count("nodes/s") == 3


def test_a_killed_run_goes_on_to_the_same_file(tiny: Path, tmp_path: Path) -> None:
    """Killed after two of three rounds and while it wrote the next: half a line, which is no tree."""
    annotated(tiny, tmp_path / "whole")
    rows = (tmp_path / "whole" / "trees.jsonl").read_bytes()
    with broken_off(4):
        annotated(tiny, tmp_path / "killed")
    file = tmp_path / "killed" / "trees.jsonl"
    assert file.read_bytes() == b"".join(rows.splitlines(keepends=True)[:4])
    with file.open("ab") as cut:
        cut.write(b'{"id": "chain/tr')
    with pytest.raises(UserError, match="holds a run already: add --resume"):
        annotated(tiny, tmp_path / "killed")
    before = annotated(tiny, tmp_path / "killed", resume=True)
    assert file.read_bytes() == rows
    assert before["nodes"] == sum(len(tree.nodes) - 1 for tree in read_trees(str(file)))


def test_a_run_does_not_go_on_without_its_trees(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotated(tiny, tmp_path / "run")
    (tmp_path / "run" / "trees.jsonl").write_text("")
    with pytest.raises(UserError, match=r"trees\.jsonl has lost trees that were written"):
        annotated(tiny, tmp_path / "run", resume=True)
    monkeypatch.setattr("rollout.annotate.load_problems", lambda sources: [PROBLEM])
    with pytest.raises(UserError, match="the problems are others than those"):
        annotated(tiny, tmp_path / "run", resume=True)


def test_too_many_solutions_without_a_verdict_end_the_run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Grader, "grade", lambda self, asked: [Verdict("invalid", "no workers")] * len(asked))
    with pytest.raises(UserError, match=r"(\d+) of \1 solutions could not be graded, .* 0\.2: \1 x no workers"):
        annotated(tiny, tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["separator=''"], "separator is where a step ends"),
        (["rollout.temperature=0"], "temperature 0 samples every step of a node alike"),
        (["lora={}"], "nothing is trained: leave out lora, quantised_base, outliers and optimizer"),
        (["quantised_base=rtn"], "nothing is trained: leave out lora, quantised_base"),
        (["search=mcts"], "there is no 'mcts' in rollout/searches"),
        (["search={name: uct, rounds: 0}"], "'uct': rounds cannot be 0"),
        (["search.children=1"], "'full_tree': children cannot be 1"),
        (["rollout.max_new_tokens=510"], "with rollout.max_new_tokens 510 that is more than the model's context"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], message: str, tiny: Path, tmp_path: Path) -> None:
    """By the launch and by the dry run."""
    with pytest.raises(UserError, match=message):
        annotated(tiny, tmp_path / "run", *overrides)
    with pytest.raises(UserError, match=message):
        list(preview(load(arguments(tiny, tmp_path / "run", *overrides)).recipe))


def test_the_dry_run_says_what_it_would_cost(tiny: Path, tmp_path: Path) -> None:
    lines = list(preview(load(arguments(tiny, tmp_path)).recipe))
    assert lines[:4] == [
        "5 problems, a tree each",
        "nodes: at most 6 a tree, 30 in all",
        "completions: at most 6 a tree, 30 in all",
        "tokens: at most 48 a tree, 240 in all",
    ]
    assert lines[4].startswith("first prompt, ")
