"""Thoughts that are cut at budgets: what each row is made of, each token trained once, none of it random but by its seed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from transformers import PreTrainedTokenizerBase

from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.prompts import Prompter
from rlcore.recipe.schema import Anytime, Prompt
from rlcore.types import Completion, Cut, Request, Sampling, seed_from
from rollout.anytime import AnytimeEngine, forced
from rollout.engines.transformers import Transformers
from rollout.scripted import Scripted

TOY = {"ends_thought": "#### ", "interruption": "..", "begins_summary": "="}
SPEC = Anytime(budgets=[3, 6, 40], summaries=2, summary_tokens=5, **TOY)
SAMPLING = Sampling(max_new_tokens=49)


@pytest.fixture
def prompter(tokenizer: PreTrainedTokenizerBase) -> Prompter:
    return Prompter(Prompt(), tokenizer)


@pytest.fixture
def anytime(tiny_spec: ModelSpec, prompter: Prompter) -> AnytimeEngine:
    tokenizer = prompter.tokenizer
    engine = Transformers(tiny_spec, tokenizer, [tokenizer.eos_token_id], batch_size=7)
    return AnytimeEngine(engine, tokenizer, SPEC, forced(SPEC, prompter, SAMPLING.max_new_tokens))


def rows_of(tokenizer: PreTrainedTokenizerBase, problems: Sequence[int], thoughts: int, spec: Anytime = SPEC) -> list[Request]:
    return [
        Request(f"p{i}", k, seed_from("anytime", i, k), tuple(tokenizer(f"{i}+1=?\n").input_ids), SAMPLING)
        for i in problems
        for k in range(thoughts * spec.rows)
    ]


# -- by hand -------------------------------------------------------------------------------------------------------------


def spoken(prompter: Prompter, thought: str) -> list[Completion]:
    """The rows of one thought at budgets 2 and 4, with two summaries each, which are 9."""
    spec = Anytime(budgets=[2, 4], summaries=2, summary_tokens=5, **TOY)
    tokenizer = prompter.tokenizer
    engine = Scripted(
        tokenizer, lambda request: "." * len(request.prefix.token_ids) + "9" if request.prefix.token_ids else thought
    )
    return AnytimeEngine(engine, tokenizer, spec, forced(spec, prompter, 13)).generate(rows_of(tokenizer, [1], 1, spec))


def told(row: Completion) -> tuple[str, tuple[int, ...], int]:
    assert row.cut is not None
    assert len(row.token_ids) == len(row.logprobs) == len(row.versions) == len(row.loss_mask)
    return row.text, row.loss_mask, row.cut.end


def test_a_thought_that_ends_between_two_budgets(prompter: Prompter) -> None:
    """As worked at the head of the file: cut at 2, where four tokens are forced, and whole at 4, where one is."""
    rows = spoken(prompter, "1+#### ")
    assert [told(row) for row in rows] == [
        ("1+..#### =9", (1, 1, 0, 0, 0, 0, 1), 2),
        ("1+..#### =9", (0, 0, 0, 0, 0, 0, 1), 2),
        ("1+#### =9", (0, 0, 1, 0, 1), 3),
        ("1+#### =9", (0, 0, 0, 0, 1), 3),
    ]
    seed = seed_from(rows[0].seed, "thought")
    assert [row.cut for row in rows] == [Cut(seed, 2, 2)] * 2 + [Cut(seed, 4, 3)] * 2


def test_a_thought_that_goes_on_beyond_the_last_budget(prompter: Prompter) -> None:
    assert [told(row) for row in spoken(prompter, "1+2-3+4")][::2] == [
        ("1+..#### =9", (1, 1, 0, 0, 0, 0, 1), 2),
        ("1+2-..#### =9", (0, 0, 1, 1, 0, 0, 0, 0, 1), 4),
    ]


def test_a_thought_that_ends_before_the_first_budget_has_nothing_to_train_at_the_second(prompter: Prompter) -> None:
    assert [told(row) for row in spoken(prompter, "1#### ")] == [
        ("1#### =9", (1, 1, 0, 1), 2),
        ("1#### =9", (0, 0, 0, 1), 2),
        ("1#### =9", (0, 0, 0, 1), 2),
        ("1#### =9", (0, 0, 0, 1), 2),
    ]


def test_a_thought_that_ends_without_saying_so_has_no_summary(prompter: Prompter) -> None:
    """Nothing is forced after an end of sequence; until there it is cut like others."""
    rows = spoken(prompter, "1+2")
    assert [told(row) for row in rows] == [
        ("1+..#### =9", (1, 1, 0, 0, 0, 0, 1), 2),
        ("1+..#### =9", (0, 0, 0, 0, 0, 0, 1), 2),
        ("1+2", (0, 0, 1), 3),
        ("1+2", (0, 0, 0), 3),
    ]
    assert {row.finish_reason for row in rows} == {"stop"}


# -- sampled -------------------------------------------------------------------------------------------------------------


def test_every_token_of_a_thought_is_trained_once_and_forced_ones_never(
    anytime: AnytimeEngine, tokenizer: PreTrainedTokenizerBase
) -> None:
    """And each token that is trained has the log-prob that the model gives it after all that stands before it."""
    requests = rows_of(tokenizer, range(6), 2)
    found = anytime.generate(requests)
    assert [(c.problem_id, c.sample, c.seed, c.sampling) for c in found] == [
        (r.problem_id, r.sample, r.seed, r.sampling) for r in requests
    ]
    scored = anytime.logprobs([(row.prompt_ids, row.token_ids) for row in found])
    kinds = set()
    for first in range(0, len(found), SPEC.rows):
        rows = found[first : first + SPEC.rows]
        thought = max((row.token_ids[: row.cut.end] for row in rows if row.cut), key=len)
        times = [0] * len(thought)
        for number, (row, scores) in enumerate(zip(rows, scored[first:], strict=False)):
            cut, mark = row.cut, tokenizer.convert_tokens_to_ids("#### ")
            assert cut == (
                seed_from(rows[0].seed, "thought"),
                SPEC.budgets[number // 2],
                min(len(thought), SPEC.budgets[number // 2]),
            )
            assert row.token_ids[: cut.end] == thought[: cut.end]
            for t in range(cut.end):
                times[t] += row.loss_mask[t]
            silent = cut.end == len(thought) < cut.budget and thought[-1] == tokenizer.eos_token_id
            said = cut.end == len(thought) and thought[-1] == mark
            between = () if silent else anytime.forced.ended if said else anytime.forced.cut
            begins = cut.end + len(between)
            assert row.token_ids[cut.end : begins] == between
            assert not any(row.loss_mask[cut.end : begins])
            assert all(row.loss_mask[begins:])
            assert len(row.token_ids) == begins if silent else 1 <= len(row.token_ids) - begins <= SPEC.summary_tokens
            kinds.add((silent, said))
            trained = [t for t, on in enumerate(row.loss_mask) if on]
            assert [row.logprobs[t] for t in trained] == pytest.approx([scores[t] for t in trained], abs=1e-4)
        assert times == [1] * len(thought)
    assert kinds == {(False, False), (False, True), (True, False)}


def test_a_thought_does_not_depend_on_what_is_sampled_beside_it(
    anytime: AnytimeEngine, tokenizer: PreTrainedTokenizerBase
) -> None:
    together = anytime.generate(rows_of(tokenizer, range(3), 3))
    alone = anytime.generate(rows_of(tokenizer, [1], 3))
    assert [(c.token_ids, c.cut) for c in together if c.problem_id == "p1"] == [(c.token_ids, c.cut) for c in alone]


def test_greedy_requests_go_through_as_they_are(anytime: AnytimeEngine, tokenizer: PreTrainedTokenizerBase) -> None:
    request = Request("p", 9, 1, tuple(tokenizer("1+1=?\n").input_ids), Sampling(temperature=0, max_new_tokens=9))
    [found] = anytime.generate([request])
    assert found == anytime.engine.generate([request])[0]
    assert found.cut is None


# -- what is refused -----------------------------------------------------------------------------------------------------


def test_a_row_that_does_not_fit_is_refused(prompter: Prompter) -> None:
    """40 tokens of thought, 4 forced and 5 of a summary."""
    assert len(forced(SPEC, prompter, 49).cut) == 4
    with pytest.raises(UserError, match=r"4 forced tokens .* set that to 49 or more"):
        forced(SPEC, prompter, 48)


def test_what_the_tokenizer_cannot_write_is_refused(prompter: Prompter) -> None:
    with pytest.raises(UserError, match=r"rollout\.anytime\.ends_thought is .*, which the model's tokenizer cannot write"):
        forced(Anytime(budgets=[4]), prompter, 512)
