"""What each drafter proposes. That none of it changes what is decoded: `test_decode`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from rlcore.types import Request, Sampling
from rollout.decoding.automaton import SuffixAutomaton
from rollout.decoding.decode import decode
from rollout.decoding.drafter import Drafter, Row
from rollout.drafters.draft_model import DraftModel, in_turn
from rollout.drafters.gsd import Graph, Gsd
from rollout.drafters.history import START, History
from rollout.drafters.ngram import Ngram
from tests.rollout.decoding.conftest import drafting

sequences = st.lists(st.integers(0, 2), max_size=24)


def row(prompt: Sequence[int], said: Sequence[int] = (), limit: int = 40) -> Row:
    made = Row(Request("p", 0, 0, tuple(prompt), Sampling()), limit)
    made.ids += said
    return made


def proposed(drafter: Drafter, at: Row) -> list[int]:
    """The tokens of a chain, after its root."""
    (tree,) = drafter.propose([at])
    assert list(tree.parents) == list(range(-1, len(tree.tokens) - 1))
    return list(tree.tokens[1:])


# -- ngram ----------------------------------------------------------------------------------------------------------------


def looked_up(ids: Sequence[int], sizes: Sequence[int]) -> int | None:
    """The place after the latest earlier match of the longest n-gram, by looking everywhere."""
    for n in sizes:
        for end in range(len(ids) - 1, n - 1, -1):
            if n <= len(ids) and list(ids[end - n : end]) == list(ids[-n:]):
                return end
    return None


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=24), st.integers(1, 24))
def test_ngram_continues_the_latest_longest_match(ids: list[int], prompt: int) -> None:
    """At every step of a row that grows by one to three tokens a time."""
    drafter = Ngram(depth=3)
    at = row(ids[:prompt])
    drafter.begin([at], [])
    for end in range(min(prompt, len(ids)), len(ids) + 1, 2):
        at.ids = ids[:end]
        place = looked_up(at.ids, [3, 2, 1])
        assert proposed(drafter, at) == ([] if place is None else at.ids[place : place + 3])


# -- history --------------------------------------------------------------------------------------------------------------


def places(text: Sequence[int], piece: Sequence[int]) -> int:
    return sum(list(text[i : i + len(piece)]) == list(piece) for i in range(len(text) - len(piece) + 1))


@settings(deadline=None)
@given(st.lists(sequences, max_size=4), sequences)
def test_the_automaton_knows_every_suffix_and_how_often_it_stands(texts: list[list[int]], growing: list[int]) -> None:
    def stands(piece: Sequence[int]) -> int:
        return sum(places(text, piece) for text in texts)

    automaton = SuffixAutomaton()
    for text in texts:
        automaton.add(text)
    state, matched = 0, 0
    for end, token in enumerate(growing, 1):
        state, matched = automaton.advance(state, matched, token)
        longest = next(n for n in range(end, -1, -1) if n == 0 or stands(growing[end - n : end]))
        assert matched == longest
        if matched:
            piece = growing[end - matched : end]
            assert automaton.count[state] == stands(piece)
            for after, following in automaton.following[state].items():
                assert automaton.count[following] == stands([*piece, after])


def test_history_continues_what_was_said_most_often_until_it_is_improbable() -> None:
    drafter = History(probable=0.5)
    for said in ([5, 6, 7, 8, 1], [5, 6, 7, 9, 1], [5, 6, 7, 8, 2], [4]):
        drafter.learn((1, 2), said)
    at, other = row((1, 2)), row((1, 3))
    drafter.begin([at, other], [])
    assert proposed(drafter, at) == [5, 6, 7, 8]  # ¾, and of these ⅔; then 1 and 2 are as likely
    assert proposed(drafter, other) == []
    at.ids += [5, 6, 7, 9]
    assert proposed(drafter, at) == [1]
    at.ids += [4, 7]  # 7 alone has been said before
    assert proposed(drafter, at) == [8]
    at.ids += [0]
    assert proposed(drafter, at) == []


def test_history_is_of_rows_that_are_done_and_forgets_the_oldest() -> None:
    drafter = History(completions=2, prompts=2)
    for said in ([5, 6], [7, 8], [7, 9]):
        at = row((1,), said)
        drafter.begin([at], [])
        drafter.forget(at)
    at = row((1,))
    drafter.begin([at], [])
    assert proposed(drafter, at) == [7, 8] or proposed(drafter, at) == [7, 9]
    at.ids += [3]
    at.finish_reason = "interrupted"
    drafter.forget(at)
    assert [list(said) for said in drafter._said[(1,)]] == [[7, 8], [7, 9]]
    assert not drafter._automata  # which are large, while no row needs them
    drafter.begin([row((1,))], [])
    assert drafter._automata[(1,)].following[0].keys() == {START, 7, 8, 9}
    drafter.learn((2,), [1])
    drafter.learn((3,), [1])
    assert list(drafter._said) == [(2,), (3,)]


def test_history_is_trusted_as_far_as_it_came_true() -> None:
    """What stood there once was followed by something else, again and again: it is not guessed any more, and long suffixes,
    which were never tried, still are."""
    drafter = History(probable=0.5)
    drafter.learn((1,), [5, 6, 7, 8, 9, 5, 7])
    at = row((1,), limit=100)
    drafter.begin([at], [])
    at.ids += [9]
    assert proposed(drafter, at) == [5, 7]
    for _ in range(4):
        at.ids += [4, 9]
        guesses = proposed(drafter, at)
    assert guesses == []
    other = row((1,))
    drafter.begin([other], [])
    other.ids += [5, 6, 7]
    assert proposed(drafter, other) == [8, 9, 5, 7]


# -- draft models ---------------------------------------------------------------------------------------------------------


def test_children_are_drawn_one_after_the_other_without_replacement() -> None:
    """Over a grid of random numbers, every ordered pair as often as it should be."""
    q = torch.tensor([0.5, 0.3, 0.2, 0.0])
    n = 100
    first, second = ((torch.arange(n) + 0.5) / n for _ in range(2))
    w = torch.stack([first.repeat_interleave(n), second.repeat(n)], 1)
    tokens, chances = in_turn(q.expand(n * n, -1), w, torch.zeros(n * n, dtype=torch.bool))
    assert torch.equal(chances, q[tokens])
    found = torch.bincount(tokens[:, 0] * 4 + tokens[:, 1], minlength=16) / n**2
    for a, b in permutations(range(3), 2):
        assert float(found[a * 4 + b]) == pytest.approx(float(q[a] * q[b] / (1 - q[a])), abs=2 / n)


def test_greedy_children_are_the_most_likely_and_none_is_drawn_of_nothing() -> None:
    q = torch.tensor([[0.1, 0.7, 0.2], [0.0, 1.0, 0.0]])
    for greedy in (True, False):
        tokens, chances = in_turn(q, torch.full((2, 3), 0.5), torch.tensor([greedy, greedy]))
        assert tokens[0].tolist() == [1, 2, 0]
        assert (tokens[1, 0], chances[1].tolist()) == (1, [1.0, 0.0, 0.0])


def test_a_draft_model_as_the_target_is_accepted_whole(target: PreTrainedModel, oracle: PreTrainedModel, ask: Callable) -> None:
    """What it says is what the target says, whatever was kept or cut off of its own cache, sampled and greedy."""
    for temperature in (0.0, 1.0):
        requests = [
            replace(request, sampling=replace(request.sampling, max_new_tokens=5 + 20 * (i % 3 != 1)))
            for i, request in enumerate(ask(6, temperature=temperature))
        ]  # the rows that leave first are not the last ones
        _, counts = decode(target, requests, drafting(DraftModel, oracle, depth=4), [])
        assert (counts.tokens, counts.accepted, counts.target_forwards) == (4 * 25 + 2 * 5, counts.drafted, 5)
        assert counts.draft_forwards == 20


def test_a_draft_model_cuts_off_what_was_rejected(target: PreTrainedModel, oracle: PreTrainedModel, ask: Callable) -> None:
    """As the target, with a second child everywhere, which is always wrong: what it reads next builds on the first alone."""
    drafter = drafting(DraftModel, oracle, depth=4, children=2, width=16)
    _, counts = decode(target, ask(6, temperature=0, max_new_tokens=25), drafter, [])
    assert (counts.target_forwards, counts.accepted) == (5, 6 * 20)


# -- graphs ---------------------------------------------------------------------------------------------------------------


def grown(table: dict[int, list[float]], **options: object) -> tuple[Graph, list[int]]:
    """A graph of a draft model for which the next token depends on the last one alone; and how many nodes were read a level."""
    drafter = Gsd.__new__(Gsd)
    usual = dict(children=2, sibling=0.0, probable=0.0, same=0)
    vars(drafter).update(usual | options)
    graph, read = Graph(0), []
    for _ in range(3):
        q = torch.tensor([table[graph.tokens[node]] for node in graph.frontier]).view(-1, 4)
        read.append(len(q))
        tokens, chances = drafter.candidates(q, [], 0)
        found = [list(zip(*each, strict=True)) for each in zip(tokens.tolist(), chances.tolist(), strict=True)]
        drafter.branch(graph, found, q)
    return graph, read


TABLE = {0: [0, 0.6, 0.4, 0], 1: [0, 0, 0.1, 0.9], 2: [0, 0, 0.1, 0.9], 3: [1, 0, 0, 0]}


def paths(graph: Graph, nodes: int, depth: int) -> set[tuple[int, ...]]:
    tree = graph.unfolded(nodes, depth)
    found: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
        found.append((*found[parent], token))
    return set(found[1:])


def test_a_piece_that_comes_again_is_drafted_once_and_read_at_all_its_places() -> None:
    """0 → 1 → 3 and 0 → 2 → 3: the second 3 is merged with the first, whose continuation both have."""
    graph, read = grown(TABLE)
    assert read == [1, 2, 2]  # the first 3, and the 2 after a 2, which is not merged with what is above it
    assert sum(token == 3 for token in graph.tokens) == 1
    assert {(1, 3, 0), (2, 3, 0), (1, 2, 3)} <= paths(graph, 40, 3)
    unmerged, unmerged_read = grown(TABLE, same=9)
    assert unmerged_read == [1, 2, 4]
    assert {(1, 3, 0), (2, 3, 0), (1, 2, 3)} <= paths(unmerged, 40, 3)


def test_what_merges_comes_after_the_same_tokens() -> None:
    graph, _ = grown(TABLE, same=1)
    assert sum(token == 3 for token in graph.tokens) > 1


def test_unlikely_siblings_are_left_out_and_unlikely_paths_end() -> None:
    assert not any(path[:2] == (1, 2) for path in paths(grown(TABLE, sibling=0.2)[0], 40, 3))
    assert any(path[:2] == (1, 2) for path in paths(grown(TABLE, sibling=0.1)[0], 40, 3))
    graph, read = grown(TABLE, probable=0.5, same=9)
    assert read == [1, 1, 1]  # 1 (0.6) and then 3 (0.54)
    assert (2,) in paths(graph, 40, 3)


def test_a_graph_unfolds_the_most_probable_paths_first_and_no_deeper_than_there_is_room() -> None:
    graph, _ = grown(TABLE)
    assert paths(graph, 3, 3) == {(1,), (1, 3), (1, 3, 0)}
    assert paths(graph, 40, 1) == {(1,), (2,)}
    assert graph.unfolded(2, 3).chances == pytest.approx([1, 0.6, 0.54])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_path_of_an_unfolded_graph_is_one_of_the_graph(data: st.DataObject) -> None:
    rows = st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any)
    table = {token: [x / sum(weights) for x in weights] for token, weights in enumerate(data.draw(st.tuples(*[rows] * 4)))}
    graph, _ = grown(table, same=data.draw(st.integers(0, 2)), children=data.draw(st.integers(1, 4)))
    nodes, depth = data.draw(st.integers(1, 30)), data.draw(st.integers(0, 4))
    tree = graph.unfolded(nodes, depth)
    assert len(tree.tokens) <= 1 + nodes
    assert max(tree.depths) <= depth
    for path in paths(graph, nodes, depth):
        at = {0}
        for token in path:
            at = {node for each in at for node in graph.edges[each] if graph.tokens[node] == token}
        assert at
