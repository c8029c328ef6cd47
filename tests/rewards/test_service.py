"""One reward model wherever it is asked: in training code, as a judge here, in other processes, and by transformers alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from rewards.judge import Judge, load_judge, named_judge, probability
from rewards.judged_text import Asked, Row
from rewards.judges.trained import Trained
from rewards.process.process import Process
from rewards.reader import shared
from rewards.service import Judges, divided
from rlcore import jobs
from rlcore.cluster.connect import connected
from rlcore.errors import UserError
from rlcore.recipe.load import load
from rlcore.types import Completion, Group, Problem, Sampling, Scored
from tests.trainers.test_reward_model import TOKEN, arguments, learner_of, recipe_of
from trainers.judged import Labelled
from trainers.reward_model import log_odds

SOLUTIONS = [("1+1=?", ("3r4", "5w6", "7r8")), ("2+2=?", ("9w9",)), ("2+2=?", ("9w9", "1r1")), ("2+2=?", ("9w9",))]
ASKED = [Asked(problem, steps[:i], (steps[i],)) for problem, steps in SOLUTIONS for i in range(len(steps))]


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with connected("local"):
        yield


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of `job: reward_model` with that head, made once."""
    made: dict[str, Path] = {}

    def of(head: str) -> Path:
        if head not in made:
            made[head] = tmp_path_factory.mktemp("reward_model") / head
            given = arguments(tiny, made[head], "epochs=2", "device=cpu", *(TOKEN if head == "token" else []))
            jobs.run(load(given), resume=False)
        return made[head]

    return of


@pytest.fixture(scope="module")
def judges(ray: None, folder: Callable[[str], Path]) -> Iterator[Judges]:
    started = Judges(named_judge(str(folder("token"))), workers=2, deadline_s=120, max_restarts=1)
    yield started
    started.close()


def by_training_code(run: Path) -> list[float]:
    judge = Trained(model=str(run))
    rows = judge.text.rows(ASKED, judge.tokenizer)
    learner = learner_of(recipe_of(str(run / "recipe.yaml")), run / "model")
    found = log_odds(learner, [Labelled(row, (0.0,) * len(row.ends)) for row in rows])
    numbers = [number for row in rows for number in row.asked]
    return [z / judge.text.temperature for _, z in sorted(zip(numbers, found, strict=True))]


def by_transformers(run: Path) -> list[float]:
    """Each alone, as a text that ends where the score stands."""
    tokenizer, text = AutoTokenizer.from_pretrained(run / "model"), Trained(model=str(run)).text
    kind = AutoModelForTokenClassification if text.head == "token" else AutoModelForSequenceClassification
    model = kind.from_pretrained(run / "model").eval()
    result = []
    for problem, previous, current in ASKED:
        steps = "".join(f"{step}\n" for step in previous + current)
        written = f"{problem}\n{steps}" if text.head == "token" else "\n".join((problem, "\n".join(previous), *current))
        with torch.no_grad():
            logits = model(**tokenizer(written, return_tensors="pt")).logits.view(-1, 2)[-1]
        result.append(float(logits[1] - logits[0]) / text.temperature)
    return result


def paid_to(judge: Judge) -> list[float]:
    """What `process` pays solution after solution: the sum of P(right) − P(wrong) over its steps."""
    reward = Process(judge={"name": "chain_truth"}, credit="sum", separator="\n")
    reward.judge_with(judge)
    groups = [Group(Problem(problem, problem, ""), [completed("\n".join(steps))]) for problem, steps in SOLUTIONS]
    return [score.value for score in reward.score(groups, None) if isinstance(score, Scored)]


def completed(text: str) -> Completion:
    return Completion("p", 0, 0, (), (1,), (1,), (0.0,), (0,), Sampling(), "stop", text)


@pytest.mark.parametrize("head", ["text", "token"])
def test_scores_are_the_same_wherever_they_are_made(head: str, folder: Callable[[str], Path]) -> None:
    """Among them twice the same step, whose scores are equal to the bit."""
    run = folder(head)
    judge = load_judge(str(run))
    heard: list[int] = []
    found = judge.log_odds(ASKED, heard.append)
    assert sum(heard) == len(ASKED)
    assert found == pytest.approx(by_training_code(run), abs=1e-5)
    assert found == pytest.approx(by_transformers(run), abs=1e-5)
    sums = [sum(2 * probability(z) - 1 for z in found[first:end]) for first, end in ((0, 3), (3, 4), (4, 6), (6, 7))]
    assert paid_to(judge) == pytest.approx(sums, abs=1e-6)
    assert len({round(z, 3) for z in found}) == 5
    assert found[3] == found[4] == found[6]


@pytest.mark.xdist_group("ray")
def test_judges_in_other_processes_say_what_one_here_does(judges: Judges, folder: Callable[[str], Path]) -> None:
    """Asked together, in another order, and one by one."""
    heard: list[int] = []
    local = load_judge(str(folder("token")))
    same = pytest.approx(local.log_odds(ASKED), abs=1e-5)
    assert judges.log_odds(ASKED, heard.append) == same
    assert sum(heard) == len(ASKED)
    assert judges.log_odds(ASKED[::-1])[::-1] == same
    assert [z for asked in ASKED for z in judges.log_odds([asked])] == same
    assert paid_to(judges) == pytest.approx(paid_to(local), abs=1e-5)
    assert judges.log_odds([]) == []


@pytest.mark.xdist_group("ray")
def test_what_a_judge_refuses_there_it_refuses_here(judges: Judges, tiny: Path) -> None:
    assert judges.log_odds([*ASKED, Asked("1" * 5000, (), ("2",))])[-1] is None
    with pytest.raises(UserError, match="it is no reward model of `job: reward_model`"):
        Judges(partial(Trained, model=str(tiny)), workers=1)


@pytest.mark.xdist_group("ray")
def test_steps_that_the_judge_did_not_learn_are_refused(judges: Judges, folder: Callable[[str], Path]) -> None:
    """Else a completion would be one step, and nobody would know why its scores are bad."""
    for judge in (load_judge(str(folder("text"))), judges):
        with pytest.raises(UserError, match=r"'\\n', and these end with '\\n\\n': set the separator to '\\n'"):
            Process(judge={"name": "chain_truth"}).judge_with(judge)
        Process(judge={"name": "chain_truth"}, separator="\n").judge_with(judge)


@pytest.mark.xdist_group("ray")
def test_a_judge_that_is_killed_is_replaced_and_judges_again(judges: Judges, capsys: pytest.CaptureFixture[str]) -> None:
    """Another death is one too many."""

    def kill_one() -> None:
        import ray

        actor: Any = judges._actors[0]
        os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)

    expected = judges.log_odds(ASKED)
    kill_one()
    assert judges.log_odds(ASKED) == pytest.approx(expected, abs=1e-5)
    assert judges.restarts == 1
    assert "warning: judge 0 died (killed, out of memory, or crashed); replaced" in capsys.readouterr().err
    kill_one()
    with pytest.raises(UserError, match=r"judge 0 died .*; 1 were replaced before it, and no more will be"):
        judges.log_odds(ASKED)


def test_a_text_that_begins_another_is_read_once() -> None:
    """Of (1, 2, 3), (1, 3), (1, 2) and (1, 2) again, two are left."""
    rows = [Row(ids, (len(ids) - 1,), (i,)) for i, ids in enumerate([(1, 2, 3), (1, 3), (1, 2), (1, 2)])]
    first, second = shared(rows)
    assert first == Row((1, 3), (1,), (1,))
    assert second.ids == (1, 2, 3)
    assert sorted(zip(second.asked, second.ends, strict=True)) == [(0, 2), (2, 1), (3, 1)]


def test_work_is_divided_by_text_and_what_begins_alike_stays_together() -> None:
    """Solutions of 8 + 6 + 6, 8, 5 and 2 characters, the last two as one: a part is full at half of all 33, or above."""
    asked = [
        Asked("p", (), ("1234567",)),
        Asked("q", (), ("1",)),
        Asked("p", (), ("12",)),
        Asked("q", ("1",), ("234",)),
        Asked("p", (), ("123456789",)),
    ]
    assert list(divided(asked, 2)) == [[4, 0], [1, 3, 2]]
    assert list(divided(asked, 100)) == [[4], [0], [1, 3], [2]]
    assert list(divided([], 2)) == []
