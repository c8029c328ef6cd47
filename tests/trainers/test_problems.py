"""Which problems a round takes: by hand, and what holds whatever was measured."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlcore import jobs
from rlcore.batch import rows
from rlcore.data.mixture import Mixture
from rlcore.recipe.load import load
from rlcore.recipe.schema import Curriculum, Replay, Source
from rlcore.run.metrics import Mean
from trainers.problems import Problems, success_rates


@pytest.fixture(scope="session")
def choose(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Problems]:
    """Problems of a source that holds so many."""
    folder = tmp_path_factory.mktemp("sources")

    def make(count: int, curriculum: Curriculum | None = None, replay: Replay | None = None) -> Problems:
        path = folder / f"{count}.jsonl"
        lines = (json.dumps({"prompt": f"{i}+1=?", "answer": str(i + 1)}) for i in range(count))
        path.write_text("".join(f"{line}\n" for line in lines))
        return Problems(Mixture([Source(name="file", path=str(path))], seed=0), curriculum, replay)

    return make


def ids(problems: Problems, n: int) -> list[str]:
    return [problem.id for problem in problems.next(n)]


def order(choose: Callable, count: int) -> list[str]:
    """The Mixture's first epoch."""
    return ids(choose(count), count)


def test_without_a_policy_the_mixtures_order_is_kept_and_nothing_is_reported(choose: Callable) -> None:
    plain, mixture = choose(7), choose(7).mixture
    for n in (3, 5, 9):
        assert ids(plain, n) == [problem.id for problem in mixture.next(n)]
        plain.measured({"few:0": 0.0})
    assert plain.report() == {}
    assert plain.state()["rates"] == {}


# -- curriculum ----------------------------------------------------------------------------------------------------------


def test_the_worked_example(choose: Callable) -> None:
    """A, B, C and D are held, with p = 1, 0.25, never and 0.75: a round of two takes C, then B, which is older than D."""
    problems = choose(4, Curriculum(target=0.5, candidates=2))
    a, b, c, d = order(choose, 4)
    problems.measured({a: 1.0, b: 0.25, d: 0.75})
    assert ids(problems, 2) == [c, b]
    assert problems.state()["held"] == []  # a and d were measured: the Mixture brings them again
    assert problems.report() == {"curriculum/rate": Mean(0.25, 1)}


@pytest.mark.parametrize(("target", "taken"), [(0.0, 1), (0.5, 2), (1.0, 0)])
def test_the_target_decides(choose: Callable, target: float, taken: int) -> None:
    names = order(choose, 3)
    problems = choose(3, Curriculum(target=target, candidates=3))
    problems.measured(dict(zip(names, (0.9, 0.2, 0.6), strict=True)))
    assert ids(problems, 1) == [names[taken]]


def test_the_latest_measurement_counts(choose: Callable) -> None:
    a, b = order(choose, 2)
    problems = choose(2, Curriculum(candidates=2))
    problems.measured({a: 0.5, b: 0.6})
    problems.measured({a: 1.0})
    assert ids(problems, 1) == [b]


def test_every_problem_is_measured_in_the_first_epoch_and_the_half_solved_come_most_often(choose: Callable) -> None:
    """12 problems, of which every third is solved half of the time and the others always."""
    names = order(choose, 12)
    problems = choose(12, Curriculum(candidates=3))
    seen = Counter[str]()
    for step in range(40):
        taken = ids(problems, 2)
        assert len(set(taken)) == 2
        seen.update(taken)
        problems.measured({name: 0.5 if name in names[::3] else 1.0 for name in taken})
        if step == 7:
            assert seen.keys() == set(names)
    assert min(seen[name] for name in names[::3]) > max(seen[name] for name in names if name not in names[::3])


def test_a_source_of_fewer_problems_than_a_round_gives_them_again(choose: Callable) -> None:
    problems = choose(3, Curriculum(candidates=2))
    for _ in range(3):
        assert sorted(Counter(ids(problems, 7)).values()) == [2, 2, 3]


# -- replay --------------------------------------------------------------------------------------------------------------


def test_unsolved_problems_come_back_after_so_many_steps_as_their_share(choose: Callable) -> None:
    """A round of four has room for one. Of those that step 1 did not solve, a and b, a comes in step 4 and b in step 5; a is
    solved then and never comes again, b is not and comes in step 8."""
    names = order(choose, 60)
    problems = choose(60, None, Replay(share=0.25, after=3))
    a, b = names[0], names[2]
    fresh = iter(names)
    for step in range(1, 12):
        taken = ids(problems, 4)
        again = {4: a, 5: b, 8: b, 11: b}.get(step)
        assert taken == [again] * (again is not None) + list(itertools.islice(fresh, 4 - (again is not None)))
        waiting = {4: 1, 5: 0, 8: 0, 11: 0}.get(step, 0 if step == 1 else 2 if step < 5 else 1)
        assert problems.report() == {"replay/share": Mean(again is not None, 4), "replay/waiting": Mean(waiting, 1)}
        problems.measured({name: 0.25 if name not in (a, b) or step == 4 else 0.0 for name in taken})


def test_a_problem_that_could_not_be_judged_does_not_wait(choose: Callable) -> None:
    problems = choose(20, None, Replay(share=1.0, after=1))
    a, *_ = ids(problems, 2)
    problems.measured({a: 0.0})
    assert a in ids(problems, 2)
    problems.measured({})
    assert problems.report()["replay/waiting"] == Mean(0, 1)


def test_what_the_mixture_gives_of_itself_is_not_replayed_beside_it(choose: Callable) -> None:
    """A dozen problems, none of them ever solved, in rounds of three: each round has three different ones."""
    problems = choose(12, None, Replay(share=0.5, after=1))
    for _ in range(40):
        taken = ids(problems, 3)
        assert len(set(taken)) == 3
        problems.measured(dict.fromkeys(taken, 0.0))


@pytest.mark.parametrize(("share", "problems", "most"), [(0.25, 4, 1), (0.25, 7, 1), (0.29, 100, 29), (1.0, 3, 3), (0.1, 9, 0)])
def test_a_share_is_rounded_down(share: float, problems: int, most: int) -> None:
    assert Replay(share=share).most(problems) == most


# -- both ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 12),
    n=st.integers(1, 6),
    curriculum=st.none() | st.builds(Curriculum, target=st.sampled_from([0.0, 0.5, 1.0]), candidates=st.integers(2, 4)),
    replay=st.none() | st.builds(Replay, share=st.sampled_from([0.2, 0.5, 1.0]), after=st.integers(1, 3)),
    rates=st.lists(st.sampled_from([0.0, 0.25, 1.0, None]), min_size=60, max_size=60),
    broken=st.integers(0, 9),
)
def test_rounds_are_full_and_a_resumed_run_draws_the_same(
    choose: Callable,
    count: int,
    n: int,
    curriculum: Curriculum | None,
    replay: Replay | None,
    rates: list[float | None],
    broken: int,
) -> None:
    unbroken, resumed = choose(count, curriculum, replay), choose(count, curriculum, replay)
    for step in range(10):
        taken = ids(unbroken, n)
        assert ids(resumed, n) == taken
        assert len(taken) == n
        assert resumed.report() == unbroken.report()
        told = {name: rate for name, rate in zip(taken, rates[step * n :], strict=False) if rate is not None}
        for problems in (unbroken, resumed):
            problems.measured(told)
        if step == broken:
            state, resumed = json.loads(json.dumps(resumed.state(), sort_keys=True)), choose(count, curriculum, replay)
            resumed.restore(state)
            assert json.dumps(resumed.state(), sort_keys=True) == json.dumps(state, sort_keys=True)


# -- what was measured ---------------------------------------------------------------------------------------------------


def test_success_rates_are_the_groups_raw_accuracy(make_batch: Callable) -> None:
    """By the numbers of the groups: the second could not be judged, the last is of the first's problem again."""
    batch = make_batch([1, 0, 1, 1, 0, 0], [0, 0, 0, 2, 3, 3], [1, 2, 3, 1, 0, 2])
    assert success_rates(batch, ["a", "b", "c", "a"]) == {"a": 0.0, "c": 1.0}
    assert success_rates(rows(batch, [0, 1, 2]), ["a", "b", "c", "a"]) == {"a": pytest.approx(2 / 3)}
    assert success_rates(rows(batch, []), ["a"]) == {}
    assert torch.equal(batch.group, torch.tensor([0, 0, 0, 2, 3, 3]))


# -- in the loop ---------------------------------------------------------------------------------------------------------


def test_a_run_that_chooses_goes_on_as_if_unbroken(tiny: Path, tmp_path: Path) -> None:
    """Two steps, then another, have the metrics of three, with groups of different sizes; everything it chose is logged."""
    policies = "algorithm={advantage: remax, curriculum: {candidates: 2}, replay: {share: 0.5, after: 1}, budget: {pilot: 2}}"
    even = "rewards=[{name: 'tests.trainers.test_loop:Even'}]"
    size = ["rollout.prompts_per_step=3", "rollout.samples=4", "rollout.max_new_tokens=6", "checkpoint.every=1"]
    small = ["data={name: chain, split: train, count: 5}", "eval=null", "threads=1", "seed=3", f"model={tiny}"]

    def run(name: str, steps: int, resume: bool = False) -> list[dict[str, float]]:
        folder = tmp_path / name
        jobs.run(load(["quickstart", policies, even, *size, *small, f"output={folder}", f"steps={steps}"]), resume)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if not k.startswith("time/") and k != "tokens_per_second"} for row in rows]

    unbroken = run("unbroken", 3)
    run("broken", 2)
    assert run("broken", 3, resume=True) == unbroken
    logged = {name for row in unbroken for name in row}
    assert {"curriculum/rate", "replay/share", "replay/waiting", "budget/min", "budget/max", "reward/greedy"} <= logged
    assert any(row["budget/max"] > 4 for row in unbroken)
