"""Reward functions written for TRL as components here: what they are given, what comes of what they return, what is refused."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rewards.compose import Graded, Rewards
from rlcore.errors import UserError
from rlcore.protocols import Reward
from rlcore.recipe.schema import Component
from rlcore.types import Completion, Group, Problem, Sampling, Score, Scored

PROBLEM = Problem("p/1", "1+1?", "2", "exact", {"level": 3})


def group(*texts: str, problem: Problem = PROBLEM) -> Group:
    def completion(k: int, text: str) -> Completion:
        n = len(text) + 1  # a token per letter, and the end token
        return Completion("p", k, 0, (1,), tuple(range(9, 9 + n)), (1,) * n, (0.0,) * n, (0,) * n, Sampling(), "stop", text)

    return Group(problem, [completion(k, text) for k, text in enumerate(texts)])


def grade(name: str, groups: Sequence[Group], **options: Any) -> Graded:
    name = name if ":" in name else f"{__name__}:{name}"
    rewards = Rewards([Component(name=name, label="r", **options)], 1.0)
    try:
        return rewards.grade(groups)
    finally:
        rewards.close()


def raw(graded: Graded) -> list[float | None]:
    return [row["value"] for row in graded.ledger]


GIVEN: dict[str, Any] = {}


def everything(prompts, completions, completion_ids, **kwargs):
    GIVEN.clear()
    GIVEN.update(kwargs, prompts=prompts, completions=completions, completion_ids=completion_ids)
    return [0.0 for _ in prompts]


def test_a_function_is_given_an_entry_per_completion_of_what_trl_gives() -> None:
    """A column that only some problems have is None for the others."""
    other = Problem("p/2", "2+2?", "4", "math", {"source": "here"})
    grade("everything", [group("a", "bc"), group("d", problem=other)])
    assert GIVEN == {
        "prompts": ["1+1?", "1+1?", "2+2?"],
        "completions": ["a", "bc", "d"],
        "completion_ids": [[9, 10], [9, 10, 11], [9, 10]],
        "id": ["p/1", "p/1", "p/2"],
        "answer": ["2", "2", "4"],
        "grader": ["exact", "exact", "math"],
        "level": [3, 3, None],
        "source": [None, None, "here"],
    }


def test_prompts_and_completions_may_be_messages() -> None:
    grade("everything", [group("a")], completions="messages")
    assert GIVEN["prompts"] == [[{"role": "user", "content": "1+1?"}]]
    assert GIVEN["completions"] == [[{"role": "assistant", "content": "a"}]]


def as_it_likes(completions, level, answer="none", *, bonus=0.0):
    return [len(c) * le + float(a) + bonus for c, le, a in zip(completions, level, answer, strict=True)]


def test_a_function_is_given_only_what_it_takes_and_options_of_the_recipe() -> None:
    assert raw(grade("as_it_likes", [group("ab")])) == [8.0]
    assert raw(grade("as_it_likes", [group("ab")], bonus=0.5)) == [8.5]


def test_an_option_stands_in_for_the_column_of_its_name() -> None:
    assert raw(grade("as_it_likes", [group("ab")], answer=["5"])) == [11.0]


bound = functools.partial(as_it_likes, bonus=1.0)


class Called:
    """A callable object, like those of TRL's own makers."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def __call__(self, completions, **kwargs):
        return [self.factor * len(c) for c in completions]


called = Called(3.0)


def test_partials_and_callable_objects_are_functions_too() -> None:
    assert raw(grade("bound", [group("ab")])) == [9.0]
    assert raw(grade("called", [group("ab")])) == [6.0]
    assert raw(grade("Called", [group("ab")], factor=4.0)) == [8.0]


async def slow(completions, **kwargs):
    assert kwargs["answer"] == ["2"]
    kept = asyncio.get_running_loop()
    LOOPS.append(kept)
    await asyncio.sleep(0)
    return [float(len(c)) for c in completions]


LOOPS: list[asyncio.AbstractEventLoop] = []


def test_async_functions_run_in_one_event_loop() -> None:
    """Clients that a function keeps from call to call belong to the loop they were made in."""
    rewards = Rewards([Component(name=f"{__name__}:slow")], 1.0)
    for _ in range(2):
        assert raw(rewards.grade([group("ab")])) == [2.0]
    assert LOOPS[0] is LOOPS[1]
    assert not LOOPS[0].is_closed()
    rewards.close()
    assert LOOPS[0].is_closed()


def mixed(completions, **kwargs):
    told = {"none": None, "nan": float("nan"), "yes": True}
    return [told.get(c, 0.25) for c in completions]


def test_none_and_nan_are_invalid_with_their_reasons() -> None:
    graded = grade("mixed", [group("none", "nan", "yes", "x")])
    assert raw(graded) == [None, None, 1.0, 0.25]
    assert [row["reason"] for row in graded.ledger] == ["mixed returned None", "r: value is nan", "", ""]
    assert graded.metrics["invalid/fraction"].value == 0.5
    assert len(graded.batch.tokens) == 2


def short(completions, **kwargs):
    return [1.0]


def boom(completions, **kwargs):
    raise KeyError("oops")


def scheduled(completions, trainer_state, **kwargs):
    return [trainer_state.global_step for _ in completions]


def with_solution(completions, solution):
    return [0.0 for _ in completions]


def maker(size):
    raise ValueError(f"{size} is too small")


def no_function(*, size=1):
    return size


constant = 5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("short", {}, "reward 'r' returned 1 scores for 2 completions"),
        ("boom", {}, r"reward 'r' raised KeyError: 'oops' \(.*test_from_trl.py:\d+\)"),
        ("scheduled", {}, "'scheduled' asks for 'trainer_state', which only TRL's trainer has"),
        (
            "with_solution",
            {},
            "'with_solution' needs the column 'solution', and problem p/1 has only level, id, answer, grader",
        ),
        ("as_it_likes", {"bonu": 1}, "has no option 'bonu'; did you mean 'bonus'"),
        ("as_it_likes", {"completions": "tokens"}, "given as 'text' or as 'messages', not as 'tokens'"),
        ("maker", {}, "needs the option 'size'"),
        ("maker", {"size": 1}, "refused its settings with ValueError: 1 is too small"),
        ("no_function", {}, "is neither a class derived from rlcore.protocols.Reward nor a reward function"),
        ("constant", {}, "is neither a class derived from rlcore.protocols.Reward nor a reward function"),
    ],
)
def test_what_cannot_work_is_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        grade(name, [group("a", "b")], **options)


def test_trls_own_rewards_work_by_import_path() -> None:
    """They read messages, and the accuracies a column `solution`."""
    problem = Problem("p/1", "1+1?", "2", meta={"solution": r"$2$"})
    texts = [group("<think>\none and one\n</think>\n$\\boxed{2}$", "$3$", problem=problem)]
    said = {"completions": "messages"}
    assert raw(grade("trl.rewards:think_format_reward", texts, **said)) == [1.0, 0.0]
    assert raw(grade("trl.rewards:accuracy_reward", texts, **said)) == [1.0, 0.0]
    assert raw(grade("trl.rewards:reasoning_accuracy_reward", texts, **said, reasoning_delimiters=["one"])) == [1.0, 0.0]
    cosine = raw(grade("trl.rewards:get_cosine_scaled_reward", texts, **said, max_len=100))
    assert cosine[0] > 0.5  # type: ignore[operator]
    assert cosine[1] < -0.5  # type: ignore[operator]
    lengths = {"max_completion_len": 30, "soft_punish_cache": 28}
    assert raw(grade("trl.rewards:get_soft_overlong_punishment", texts, **lengths)) == [-1.0, pytest.approx(-2 / 28)]


class Even(Reward):
    """A verifiable reward that a random model gets right now and then."""

    verifiable = True

    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        return [Scored(float(c.token_ids[0] % 2 == 0)) for group in groups for c in group.completions]


def letters(completions: list[str], answer: list[str], **kwargs: Any) -> list[float | None]:
    """Pays the share of the answer's digit; has no opinion on completions with a q."""
    return [None if "q" in c else c.count(a) / 12 for c, a in zip(completions, answer, strict=True)]


def test_a_function_of_trls_kind_trains_here(launch: Callable, steps: Callable, tmp_path: Path) -> None:
    """Real steps: its raw values are in the ledger, its Nones counted, TRL's overlong equals ours, and the state of a component
    beside it is kept."""
    recipe = tmp_path / "rewards.yaml"
    recipe.write_text(f"""
rewards:
  - {{name: "{__name__}:Even"}}
  - {{name: "{__name__}:letters", weight: 2}}
  - {{name: "trl.rewards:get_soft_overlong_punishment", max_completion_len: 12, soft_punish_cache: 12}}
  - {{name: overlong, max_tokens: 12, buffer: 12}}
  - {{name: short_rl, length_tolerance: 1}}
algorithm: {{max_invalid_fraction: 1}}
""")
    folder = launch("run", str(recipe))
    rows = [row for file in sorted((folder / "ledger").iterdir()) for row in pq.read_table(file).to_pylist()]
    of = {c: [row for row in rows if row["component"] == c] for c in dict.fromkeys(row["component"] for row in rows)}
    told = [row["value"] for row in of["letters"]]
    assert told == letters([row["completion"] for row in of["letters"]], [row["answer"] for row in of["letters"]])
    assert None in told
    assert any(told)
    assert {row["reason"] for row in of["letters"] if not row["valid"]} == {"letters returned None"}
    assert [row["value"] for row in of["get_soft_overlong_punishment"]] == [row["value"] for row in of["overlong"]]
    for step in steps(folder):
        assert step["grad_norm"] > 0
        assert 0 < step["invalid/fraction"] < 1
    state = json.loads((folder / "checkpoints/step-3/state.json").read_text())
    assert state["cursors"]["rewards"] == {"short_rl": max(step["accuracy"] for step in steps(folder))}
