"""Trees of solutions: their file, HNC, and what reward models learn from them, on trees that can be checked by hand."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore import jobs
from rlcore.data.formats.chain_trees import chain_trees
from rlcore.data.hnc import hnc
from rlcore.data.step_examples import Example, Kind, examples
from rlcore.data.tree_examples import balanced, selected
from rlcore.data.trees import AnnotatedTree, Node, Tree, read_trees, to_json
from rlcore.errors import UserError
from rlcore.plugins import bind
from rlcore.recipe.load import load
from tests.trainers.test_reward_model import arguments


def grown(shape: list[tuple[int | None, int | None]], id: str = "t") -> Tree:
    """A tree from (parent, whether a leaf is right, None where it is none) of each node; node i says `si`, and leaves end."""
    visits, correct = [0] * len(shape), [0] * len(shape)
    for i, (_, right) in enumerate(shape):
        at: int | None = i if right is not None else None
        while at is not None:
            visits[at], correct[at], at = visits[at] + 1, correct[at] + (right or 0), shape[at][0]
    steps = [() if parent is None else (f"s{i}",) for i, (parent, _) in enumerate(shape)]
    nodes = [Node(steps[i], parent, visits[i], correct[i], right is not None) for i, (parent, right) in enumerate(shape)]
    return Tree(id, "Q", "2", tuple(nodes), "\n")


# Two first steps; after the first four ways to go on, of which the last has two ends.
SMALL = grown([(None, None), (0, None), (0, 0), (1, 1), (1, 0), (1, 1), (1, None), (6, 1), (6, 0)])


def test_a_node_scores_what_came_of_it() -> None:
    assert [(node.visits, node.correct) for node in SMALL.nodes] == [
        *[(6, 3), (5, 3), (1, 0)],
        *[(1, 1), (1, 0), (1, 1), (2, 1)],
        *[(1, 1), (1, 0)],
    ]
    assert SMALL.nodes[1].score == 3 / 5
    assert SMALL.heights == [0, 1, 1, 2, 2, 2, 2, 3, 3]
    assert SMALL.steps_to(7) == ("s1", "s6", "s7")


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    changed = hnc(SMALL, seed=0)
    (tmp_path / "trees.jsonl").write_text(f"{to_json(SMALL)}\n{to_json(changed)}\n")
    assert read_trees(str(tmp_path / "trees.jsonl")) == [SMALL, changed]
    options = {"path": str(tmp_path / "trees.jsonl"), "hnc": True, "seed": 3, "limit": 1}
    assert bind("rlcore.data.formats", "trees", options)() == [AnnotatedTree(SMALL, 1, 3)]


ROOT = {"steps": [], "parent": None, "visits": 2, "correct": 1, "ends": False}
LEAF = {"steps": ["a"], "parent": 0, "visits": 1, "correct": 1, "ends": True}


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "the first node must be the root"),
        ([LEAF], "the first node must be the root"),
        ([ROOT, LEAF | {"parent": 1}], r"nodes\[1\] has the parent 1, which is no node before it"),
        ([ROOT, LEAF | {"parent": None}], r"nodes\[1\] has the parent None"),
        ([ROOT, LEAF | {"correct": 2}], r"nodes\[1\] has 2 correct of 1 visits"),
        ([ROOT, LEAF, LEAF | {"parent": 1}], r"nodes\[2\] goes on from nodes\[1\], which ends the solution"),
        ([ROOT, LEAF, LEAF], r"nodes\[0\] has 1 correct of 2 visits, fewer than the nodes below it: 2 of 2"),
        ([ROOT, LEAF | {"steps": [" "]}], r"nodes\[1\]: field 'steps' holds what is no text"),
        ([ROOT, LEAF | {"visits": 1.0}], r"nodes\[1\]: field 'visits' is not an integer but float"),
        ([{}], r"nodes\[0\]: field 'steps' is missing"),
    ],
)
def test_what_is_no_tree_is_refused_with_its_line(nodes: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    row = {"id": "t", "problem": "Q", "answer": "2", "nodes": nodes, "separator": "\n"}
    (tmp_path / "trees.jsonl").write_text(f"{to_json(SMALL)}\n{json.dumps(row)}\n")
    with pytest.raises(UserError, match=rf"trees\.jsonl:2: .*{message}"):
        read_trees(str(tmp_path / "trees.jsonl"))


# -- HNC ---------------------------------------------------------------------------------------------------------------------


def test_hnc_merges_a_child_with_its_parent_and_gives_it_to_the_grandparent() -> None:
    """Node 6 of SMALL, moved: node 1 loses its two solutions, the root keeps its own, and what is below is one height lower."""
    [after] = {tree for seed in range(50) if (tree := hnc(SMALL, seed)).nodes[6].parent == 0}
    expected = list(SMALL.nodes)
    expected[1] = Node(("s1",), 0, 3, 2)
    expected[6] = Node(("s1", "s6"), 0, 2, 1)
    assert after.nodes == tuple(expected)
    assert after.heights == [0, 1, 1, 2, 2, 2, 1, 2, 2]
    assert after.steps_to(7) == SMALL.steps_to(7)


def test_each_child_moves_with_probability_one_half_until_one_has() -> None:
    """The first of four with 1/2, the second with 1/4, …: of 4000 within four standard errors."""
    counts = Counter(
        next((i for i, node in enumerate(tree.nodes) if node.parent != SMALL.nodes[i].parent), None)
        for tree in (hnc(SMALL, seed) for seed in range(4000))
    )
    for moved, chance in ((3, 1 / 2), (4, 1 / 4), (5, 1 / 8), (6, 1 / 16), (None, 1 / 16)):
        assert counts[moved] / 4000 == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 4000) ** 0.5)


@st.composite
def full(draw: st.DrawFn) -> Tree:
    """Up to 5 children a node, three levels deep."""
    shape: list[tuple[int | None, int | None]] = [(None, None)]
    level = [0]
    for height in (1, 2, 3):
        below = []
        for parent in level:
            for _ in range(draw(st.integers(1, 5))):
                leaf = height == 3 or draw(st.integers(0, 3)) == 0
                shape.append((parent, draw(st.integers(0, 1)) if leaf else None))
                below += [] if leaf else [len(shape) - 1]
        level = below
    return grown(shape)


@given(full(), st.integers(0, 1 << 30))
def test_hnc_keeps_the_rules_and_the_solutions(tree: Tree, seed: int) -> None:
    after = hnc(tree, seed)
    moved = {i for i, node in enumerate(tree.nodes) if node.parent != after.nodes[i].parent}
    parents = [tree.nodes[i].parent for i in moved]
    assert len(parents) == len(set(parents))
    for i in moved:
        parent = tree.nodes[i].parent
        assert parent is not None
        assert parent not in moved
        assert len(tree.children[parent]) >= 4
        assert after.nodes[i].parent == tree.nodes[parent].parent is not None
    below = after.children
    for i, (before, now) in enumerate(zip(tree.nodes, after.nodes, strict=True)):
        assert after.steps_to(i) == tree.steps_to(i)
        assert (now.visits, now.correct) == (before.visits, before.correct) or not moved.isdisjoint(tree.children[i])
        if below[i]:  # as counted anew from the leaves
            assert now.visits == sum(after.nodes[child].visits for child in below[i])
            assert now.correct == sum(after.nodes[child].correct for child in below[i])


# -- examples ----------------------------------------------------------------------------------------------------------------


def test_every_score_of_a_height_is_drawn_as_often_as_the_rarest_but_a_tenth_at_least() -> None:
    tree = grown([(None, None), *[(0, 1)] * 45, *[(0, 0)] * 3, *[(0, None)] * 2, *[(49, 1), (49, 0), (50, 1), (50, 0)]])
    drawn = selected(tree, random.Random(0))
    count = Counter((tree.heights[i], tree.nodes[i].score) for i in drawn)
    assert count == {(1, 1.0): 4, (1, 0.0): 2, (1, 0.5): 2, (2, 1.0): 2, (2, 0.0): 2}
    assert len(set(drawn)) == len(drawn)
    assert len(balanced(tree, range(1, 46), random.Random(0))) == 5
    assert balanced(tree, [], random.Random(0)) == []


def test_nodes_that_were_not_visited_or_say_nothing_are_no_examples() -> None:
    nodes = (Node((), None, 1, 1), Node(("a",), 0, 0, 0, True), Node((), 0, 1, 1, True))
    assert all(examples(kind, AnnotatedTree(Tree("t", "Q", "2", nodes, "\n"), 0, 0)) == [] for kind in ("prm", "hrm", "orm"))


PAIR = grown([(None, None), (0, None), (0, 0), (1, 1), (1, 0)])  # everything of it is selected


def told(kind: Kind, tree: Tree) -> set[tuple[str, str, float, str]]:
    found = examples(kind, AnnotatedTree(tree, 0, 0))
    assert len(found) == len(set(found))
    return {(",".join(e.previous), ",".join(e.current), e.label, e.made) for e in found}


def test_each_kind_learns_what_it_judges() -> None:
    steps = {("", "s1", 0.5, "step"), ("", "s2", 0.0, "step"), ("s1", "s3", 1.0, "step"), ("s1", "s4", 0.0, "step")}
    assert told("prm", PAIR) == steps
    assert told("hrm", PAIR) == steps | {("", "s1,s3", 1.0, "merged"), ("", "s1,s4", 0.0, "merged")}
    right, *wrong = sorted(told("orm", PAIR), key=lambda each: -each[2])
    assert right == ("", "s1,s3", 1.0, "solution")
    assert wrong in ([("", "s2", 0.0, "solution")], [("", "s1,s4", 0.0, "solution")])  # as many as there are right ones


def test_hncs_tree_is_learned_from_beside_the_one_that_was_grown() -> None:
    """Triples of steps, and the step that lost solutions with its new score; what both trees say is there once."""
    seed = next(seed for seed in range(50) if hnc(SMALL, seed).nodes[6].parent == 0)
    more = examples("hrm", AnnotatedTree(SMALL, 1, seed))
    keys = [(e.previous, e.current, e.label) for e in more]
    assert len(keys) == len(set(keys))
    assert set(examples("hrm", AnnotatedTree(SMALL, 0, seed))) < set(more)
    assert Example("Q", (), ("s1",), 2 / 3, "step") in more
    assert {e.current for e in more if len(e.current) == 3} <= {("s1", "s6", "s7"), ("s1", "s6", "s8")}
    assert any(len(e.current) == 3 for e in more)


@pytest.mark.parametrize(("kind", "article"), [("prm", "a prm"), ("orm", "an orm")])
def test_hnc_is_for_those_who_judge_merged_steps(kind: Kind, article: str) -> None:
    with pytest.raises(UserError, match=f"hnc merges steps, which {article} does not judge: set kind to hrm"):
        examples(kind, AnnotatedTree(SMALL, 1, 0))


# -- training ----------------------------------------------------------------------------------------------------------------


def test_a_reward_model_learns_the_chances_that_trees_tell(tiny: Path, tmp_path: Path) -> None:
    """A step with an `r` is right in 3 of 4 solutions, one with a `w` in 1 of 4. Whoever knows that is H(½) − H(¼) = 0.131
    nats above the prior, has nothing to calibrate, and no one can know more."""
    with (tmp_path / "trees.jsonl").open("w") as file:
        for i in range(200):
            steps = [Node((f"{i}{letter}{i}",), 0, 4, correct) for letter, correct in (("r", 3), ("w", 1))]
            file.write(to_json(Tree(str(i), f"{i}+{i}=?", "2", (Node((), None, 8, 4), *steps), "\n")) + "\n")
    data = f"data={{name: trees, path: {tmp_path / 'trees.jsonl'}}}"
    summary = jobs.run(load(arguments(tiny, tmp_path / "run", data, "epochs=8")), resume=False)
    assert summary["train_examples"] + summary["validation_examples"] == 400
    assert 0.12 < summary["validation_gain"] < 0.1309
    assert summary["validation_auc"] == 1
    assert summary["temperature"] == pytest.approx(1, abs=0.2)


def test_trees_of_other_steps_than_the_recipe_says_are_refused(tiny: Path, tmp_path: Path) -> None:
    """The model would say of itself that it learned the recipe's."""
    path = tmp_path / "trees.jsonl"
    path.write_text(to_json(replace(SMALL, separator="\n\n")) + "\n")
    recipe = load(arguments(tiny, tmp_path / "run", f"data={{name: trees, path: {path}}}"))
    with pytest.raises(UserError, match=r"the steps of tree t end with '\\n\\n': set judging\.separator to that"):
        jobs.run(recipe, resume=False)


def test_a_policys_chains_are_judged_by_their_truth(tmp_path: Path) -> None:
    """3+5-9: 3+5=8 is true and goes on twice, #### 9 is the answer; what says nothing is no solution, and each counts once."""
    nodes = [
        Node((), None, 5, 1),
        Node(("3+5=8",), 0, 3, 1),
        Node(("#### 9",), 1, 1, 1, True),
        Node(("#### 8",), 1, 1, 0, True),
        Node(("#### 8",), 1, 1, 0, True),
        Node((), 0, 1, 0, True),
        Node(("#### 1",), 0, 1, 0, True),
    ]
    path = tmp_path / "trees.jsonl"
    path.write_text(to_json(Tree("t", "3+5-9=?", "9", tuple(nodes), "\n")) + "\n")
    found = {solution.steps: solution.labels for solution in chain_trees(path=str(path))}
    assert not any(solution.meta for solution in chain_trees(path=str(path)))
    assert found == {
        ("3+5=8", "#### 9"): ("correct", "correct"),
        ("3+5=8", "#### 8"): ("correct", "wrong"),
        ("#### 1",): ("wrong",),
    }


def test_a_chain_that_went_no_further_is_no_solution_to_judge_whole(tmp_path: Path) -> None:
    nodes = [Node((), None, 2, 1), Node(("3+5=8",), 0, 1, 0), Node(("#### 9",), 0, 1, 1, True)]
    path = tmp_path / "trees.jsonl"
    path.write_text(to_json(Tree("t", "3+5-9=?", "9", tuple(nodes), "\n")) + "\n")
    [cut, ended] = chain_trees(path=str(path))
    assert (cut.meta, ended.meta) == ({"unfinished": True}, {})
    assert [example.current for solution in (cut, ended) for example in examples("orm", solution)] == [("#### 9",)]
    assert len(examples("prm", cut)) == 1


@pytest.mark.parametrize(("problem", "step"), [("What is 3+5?", "3+5=8"), ("3+5-9=?", "3+5=8\n8-9=9")])
def test_a_tree_of_something_else_than_chains_is_refused_by_name(tmp_path: Path, problem: str, step: str) -> None:
    path = tmp_path / "trees.jsonl"
    path.write_text(to_json(Tree("t", problem, "9", (Node((), None, 1, 1), Node((step,), 0, 1, 1, True)), "\n")) + "\n")
    with pytest.raises(UserError, match=r"trees\.jsonl: tree t is none of a chain, one line a step"):
        chain_trees(path=str(path))
