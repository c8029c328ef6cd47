"""Completions that grow as a tree: exactly the leaves asked for, what they share computed once, none of what they are lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from rlcore.models import ModelSpec
from rlcore.types import Completion, Request, Sampling, seed_from
from rollout.engines.transformers import Transformers
from rollout.tree import TreeEngine, circles, computed_tokens

LIMIT, SEGMENT = 22, 5


@pytest.fixture
def tree(tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> TreeEngine:
    engine = Transformers(tiny_spec, tokenizer, [tokenizer.eos_token_id], batch_size=7)
    return TreeEngine(engine, leaves=12, segment=SEGMENT, first=2, branches=2)


def leaves_of(tokenizer: PreTrainedTokenizerBase, problems: Sequence[int], count: int) -> list[Request]:
    sampling = Sampling(max_new_tokens=LIMIT)
    return [
        Request(f"p{i}", k, seed_from("tree", i, k), tuple(tokenizer(f"{i}+1=?\n").input_ids), sampling)
        for i in problems
        for k in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_every_request_is_a_leaf_of_its_problems_tree(tree: TreeEngine, tokenizer: PreTrainedTokenizerBase, count: int) -> None:
    requests = leaves_of(tokenizer, range(3), count)
    found = tree.generate(requests)
    assert [(c.problem_id, c.sample, c.seed, c.sampling) for c in found] == [
        (r.problem_id, r.sample, r.seed, r.sampling) for r in requests
    ]
    roots = {r.problem_id: r.seed for r in reversed(requests)}
    for leaf in found:
        assert leaf.path[0] == roots[leaf.problem_id]
        assert len(leaf.path) == len(set(leaf.path)) == 1 + max(1, -(-len(leaf.token_ids) // SEGMENT))
        assert leaf.finish_reason == "stop" or len(leaf.token_ids) == LIMIT or circles(leaf.token_ids, SEGMENT)
        assert len(leaf.logprobs) == len(leaf.versions) == len(leaf.loss_mask) == len(leaf.token_ids)
        assert set(leaf.loss_mask) == {1}


def test_completions_that_pass_a_node_have_the_same_tokens_until_there(
    tree: TreeEngine, tokenizer: PreTrainedTokenizerBase
) -> None:
    """And part after it: nothing is sampled twice."""
    found = tree.generate(leaves_of(tokenizer, range(4), 8))
    passing = Counter(node for leaf in found for node in leaf.path[1:])
    assert max(passing.values()) > 1
    for first in found:
        for second in found:
            shared = len(set(first.path) & set(second.path)) - 1
            if first is not second and shared > 0:
                assert first.path[: shared + 1] == second.path[: shared + 1]
                until = shared * SEGMENT
                assert first.token_ids[:until] == second.token_ids[:until]
                assert first.logprobs[:until] == second.logprobs[:until]


def test_the_engine_samples_what_is_counted_as_computed(tree: TreeEngine, tokenizer: PreTrainedTokenizerBase) -> None:
    sampled = []
    poll = tree.engine.poll

    def counting() -> list[Completion]:
        done = poll()
        sampled.extend(done)
        return done

    before: dict[int, int] = {}
    submit = tree.engine.submit

    def noting(requests: Sequence[Request]) -> None:
        before.update({r.seed: len(r.prefix.token_ids) for r in requests})
        submit(requests)

    tree.engine.poll, tree.engine.submit = counting, noting  # type: ignore[method-assign]
    found = tree.generate(leaves_of(tokenizer, range(4), 8))
    computed = sum(len(c.token_ids) - before[c.seed] for c in sampled)
    assert computed_tokens(found, SEGMENT) == computed < sum(len(c.token_ids) for c in found)


def test_a_tree_does_not_depend_on_what_is_sampled_beside_it(tree: TreeEngine, tokenizer: PreTrainedTokenizerBase) -> None:
    together = tree.generate(leaves_of(tokenizer, range(4), 6))
    alone = tree.generate(leaves_of(tokenizer, [2], 6))
    assert [(c.token_ids, c.path) for c in together if c.problem_id == "p2"] == [(c.token_ids, c.path) for c in alone]


def test_two_groups_of_one_problem_are_two_trees(tree: TreeEngine, tokenizer: PreTrainedTokenizerBase) -> None:
    found = tree.generate(leaves_of(tokenizer, [1], 24))
    assert [len({leaf.path[0] for leaf in group}) for group in (found[:12], found[12:])] == [1, 1]
    assert found[0].path[0] != found[12].path[0]


def test_greedy_requests_go_through_as_they_are(tree: TreeEngine, tokenizer: PreTrainedTokenizerBase) -> None:
    request = Request("p", 9, 1, tuple(tokenizer("1+1=?\n").input_ids), Sampling(temperature=0, max_new_tokens=LIMIT))
    [found] = tree.generate([request])
    assert found == tree.engine.generate([request])[0]
    assert not found.path


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), min_size=1, max_size=3), st.integers(2, 8))
def test_a_circle_is_a_repetition_that_fills_the_window(before: list[int], loop: list[int], window: int) -> None:
    looping = (before + loop * 20)[: len(before) + window + len(loop)]
    if len(loop) <= window // 2:
        assert circles(looping, window)
    assert not circles([*looping, 9], window)


def test_a_branch_that_circles_is_a_leaf_as_if_it_had_reached_the_limit(
    tree: TreeEngine, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the leaves that it should have brought forth are planted elsewhere in the tree."""
    monkeypatch.setattr("rollout.tree.circles", lambda token_ids, window: token_ids[0] % 2 == 0 and len(token_ids) == SEGMENT)
    found = tree.generate(leaves_of(tokenizer, range(6), 6))
    short = [c for c in found if c.finish_reason == "length" and len(c.token_ids) < LIMIT]
    assert short
    assert len(found) == 36
