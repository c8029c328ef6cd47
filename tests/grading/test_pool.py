r"""`rlcore.grading.pool.Grader`: whose fault each failure is, and that nothing hangs, leaks or outlives the trainer.

The answer that hangs is an equation whose roots sympy looks for, for minutes. What is not exercised: a kernel that kills a
worker for memory, which looks to the pool like the kernel's alarm clock, which is.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlcore.errors import UserError
from rlcore.grading import workers
from rlcore.grading.pool import GRADER_VERSION, Grader
from rlcore.grading.workers import Workers
from rlcore.types import Problem, Verdict

CORRECT = Verdict("correct")
LINE, HANGS = "y=2x+3", "x^{5003}+x+1=0"


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(deadline_s=1.0) as shared:
        yield shared


def problem(answer: str, grader: str = "math", **meta: Any) -> Problem:
    return Problem("p", "", answer, grader, meta)


def boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


def ask(grader: Grader, gold: str, answer: str) -> Verdict:
    return grader.grade([(problem(gold), boxed(answer), False)])[0]


def test_verdicts_come_in_the_order_of_the_completions(grader: Grader) -> None:
    """Easy and hard answers, right and wrong, mixed: each verdict at the place of its completion."""
    hard = problem("(x+1)^2")
    asked = [
        (hard, boxed("x^2+2x+1"), False),
        (problem("5"), boxed("5"), False),
        (hard, boxed("x^2"), False),
        (problem("5"), "I give up.", False),
        (hard, boxed("x^2+2x+1"), True),
        (problem("5"), "I was about to s", True),
        (problem("5"), "3 + 2 = 5 and", True),  # where the cut fell is no answer
        (problem("5"), "3 + 2 = 5", False),
        (problem("Al is a knight", "roles"), boxed("Al is a knight"), False),
    ]
    assert grader.grade(asked) == [
        CORRECT,
        CORRECT,
        Verdict("wrong", "wrong answer: x^2"),
        Verdict("wrong", "no answer"),
        CORRECT,
        Verdict("wrong", "truncated"),
        Verdict("wrong", "truncated"),
        CORRECT,
        CORRECT,
    ]
    assert grader.grade([]) == []


def test_easy_answers_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands a second, and the pool does not even start."""
    monkeypatch.setattr(Workers, "_pool", None)
    with Grader() as grader:
        started = time.perf_counter()
        verdicts = grader.grade([(problem(str(n % 7)), boxed("3.0"), False) for n in range(2000)])
        assert time.perf_counter() - started < 2
    assert verdicts.count(CORRECT) == 2000 // 7 + 1
    assert grader.counts == {"correct": 286, "wrong answer": 1714}


def test_a_hanging_answer_is_wrong_and_the_pool_goes_on(grader: Grader) -> None:
    """Deadline, once more on a fresh process, deadline: wrong(ungradable), counted for each completion that says it."""
    counts, failures = grader.counts["ungradable"], grader.failures["TimeoutError"]
    started = time.perf_counter()
    gold = problem(LINE)
    assert grader.grade([(gold, boxed(HANGS), False)] * 3) == [Verdict("wrong", "ungradable")] * 3
    assert 2.0 < time.perf_counter() - started < 15
    assert grader.counts["ungradable"] == counts + 3
    assert grader.failures["TimeoutError"] == failures + 1
    assert ask(grader, "x+1", "1+x") == CORRECT


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_worker_is_replaced_by_a_warm_one() -> None:
    """The new process spends next to nothing of what the fork server has spent on imports and on warming up."""
    with closing(Workers(1, deadline_s=1.0, memory_mb=2048)) as pool:
        before = pool._pool("math").schedule(os.getpid).result()
        assert isinstance(pool.run([(HANGS, problem(LINE))])[0], TimeoutError)
        assert pool.run([("1+x", problem("x+1"))]) == [CORRECT]
        after, server = (pool._pool("math").schedule(ask).result() for ask in (os.getpid, os.getppid))
        spent = pool._pool("math").schedule(time.process_time).result()
    ticks = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[11:13]
    assert before != after
    assert spent < sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") / 20


MAIN = """
from big_library import helper
from rlcore.grading.workers import Workers
from rlcore.types import Problem

if __name__ == "__main__":
    pool = Workers(2, deadline_s=60.0, memory_mb=2048)
    pool.run([("1+x", Problem("p", "", "x+1"))])
    pool.close()
"""


def test_what_the_main_module_imports_no_worker_imports_again(tmp_path: Path) -> None:
    """The library is imported twice: by the main module and by the fork server."""
    (tmp_path / "big_library.py").write_text("import os, sys\nprint(os.getpid(), file=sys.stderr)\ndef helper(): ...\n")
    (tmp_path / "main.py").write_text(MAIN)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, tmp_path / "main.py"], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.split()) == 2, done.stderr


def test_a_hang_does_not_keep_the_others_waiting() -> None:
    """With as many hanging answers as workers, all others are judged by their replacements."""
    line, square = problem(LINE), problem("(x+1)^2")
    asked = [(line, boxed(HANGS), False), (line, boxed("x^{5009}+x+1=0"), False)]
    asked += [(square, boxed(f"x^2+2x+{n}-{n - 1}"), False) for n in range(50)]
    with Grader(deadline_s=1.0) as grader:
        assert grader.grade(asked) == [Verdict("wrong", "ungradable")] * 2 + [CORRECT] * 50
        assert grader.failures == {"TimeoutError": 2}


def test_gym_checks_that_are_broken_are_invalid(grader: Grader) -> None:
    """A check that raises on its own gold answer, or gives it no marks, is not the policy's fault."""
    pytest.importorskip("reasoning_gym")
    entry = {"answer": "94*4 - 61 - 6", "metadata": {"source_dataset": "countdown", "numbers": [6, 61, 94, 4], "target": 309}}
    whole = problem(entry["answer"], "gym", task="countdown", entry=entry)
    no_numbers = problem(entry["answer"], "gym", task="countdown", entry={"answer": entry["answer"], "metadata": {}})
    no_entry = problem(entry["answer"], "gym", task="countdown")
    asked = [(whole, "94*4-6-61"), (whole, "94*4-6-60"), (no_numbers, "5"), (no_entry, "5")]
    assert grader.grade([(gold, boxed(answer), False) for gold, answer in asked]) == [
        CORRECT,
        Verdict("wrong", "wrong answer: 94*4-6-60"),
        Verdict("invalid", "gold answer refused by the check of countdown"),
        Verdict("invalid", "grader broken: KeyError: 'entry'"),
    ]


@pytest.mark.parametrize(
    ("gold", "on_answer", "on_gold", "verdict"),
    [
        ("1", KeyError("x"), CORRECT, Verdict("wrong", "ungradable")),
        ("1", MemoryError(), CORRECT, Verdict("wrong", "ungradable")),
        ("1", KeyError("x"), KeyError("x"), Verdict("invalid", "grader broken: KeyError: 'x'")),
        ("1", TimeoutError(), TimeoutError(), Verdict("invalid", "grader broken: TimeoutError: ")),
        ("1", KeyError("x"), Verdict("wrong"), Verdict("invalid", "grader broken: KeyError: 'x'")),
        ("", KeyError("x"), Verdict("wrong"), Verdict("wrong", "ungradable")),  # a gym task that names no answer
        ("1", CORRECT, CORRECT, CORRECT),  # the second try did it
    ],
)
def test_whose_fault(
    monkeypatch: pytest.MonkeyPatch, gold: str, on_answer: Any, on_gold: Verdict | Exception, verdict: Verdict
) -> None:
    """After a failure, the second try and the gold answer, both on fresh processes, decide; here they are scripted."""

    def run(pool: Workers, tasks: list[tuple[str, Problem]]) -> list[Any]:
        return [(on_gold if answer == gold else on_answer) if pool.single_use else TimeoutError() for answer, _ in tasks]

    monkeypatch.setattr(Workers, "run", run)
    with Grader() as grader:
        assert grader.grade([(problem(gold, "gym"), boxed("2"), False)]) == [verdict]


def test_a_missing_package_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workers, "run", lambda pool, tasks: [UserError("pip install it")] * len(tasks))
    with Grader() as grader, pytest.raises(UserError, match="pip install it"):
        grader.grade([(problem("1", "gym"), boxed("2"), False)])


def test_an_unreadable_gold_is_invalid(grader: Grader) -> None:
    assert ask(grader, r"\frac{", "3") == Verdict("invalid", r"gold answer unparsable: \frac{")


def test_workers_that_cannot_start_are_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes die in their preparation, with more tasks waiting than the pipe to them holds: invalid, not a hang and
    not a 0. Once they can start, they do."""
    large = problem("x+1", solution="x" * 20_000)
    with Grader() as grader:
        with monkeypatch.context() as broken:
            broken.setattr(workers, "_prepare", os._exit)
            verdicts = grader.grade([(large, boxed(f"x+{n}+1"), False) for n in range(20)])
        assert {verdict.kind for verdict in verdicts} == {"invalid"}
        assert verdicts[0].reason.startswith("grader broken: BrokenProcessPool")
        assert ask(grader, "x+1", "1+x") == CORRECT


def test_idle_workers_that_were_killed_are_replaced() -> None:
    with closing(Workers(1, deadline_s=3.0, memory_mb=2048)) as pool:
        task = ("1+x", problem("x+1"))
        assert pool.run([task]) == [CORRECT]
        os.kill(pool._pool("math").schedule(os.getpid).result(), signal.SIGKILL)
        time.sleep(0.5)
        assert pool.run([task]) == [CORRECT]


def test_a_worker_inside_one_long_c_call_ends_at_once() -> None:
    """It cannot run a signal handler there, so it must not need one: pebble's own would cost 3 seconds for each such answer."""
    with closing(Workers(1, deadline_s=60.0, memory_mb=2048)) as pool:
        assert pool.run([("1+x", problem("x+1"))]) == [CORRECT]
        future = pool._pool("math").schedule(eval, args=["sum(range(10**12))"])
        time.sleep(0.5)
        assert future.running()
        started = time.perf_counter()
    assert time.perf_counter() - started < 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit")
def test_memory_is_bounded(grader: Grader) -> None:
    """A worker can have what it is allowed beyond its imports, and no more."""
    pool = grader._workers._pool("math")
    assert pool.schedule(eval, args=["len(bytearray(2**30))"]).result() == 2**30
    with pytest.raises(MemoryError):
        pool.schedule(eval, args=["len(bytearray(3 * 2**30))"]).result()


def test_from_threads(grader: Grader) -> None:
    """math-verify's own timeouts work in the main thread only; ours in any, and several at a time."""
    verdicts: dict[int, Verdict] = {}
    threads = [
        threading.Thread(target=lambda n=n: verdicts.update({n: ask(grader, "x+1", f"x+{n}-{n // 2}")})) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [verdicts[n].kind for n in range(4)] == ["wrong", "correct", "correct", "wrong"]


ORPHAN = """
import threading, time
from rlcore.grading.pool import Grader
from rlcore.types import Problem

if __name__ == "__main__":
    grader = Grader(deadline_s=1.0)
    grader.grade([(Problem("p", "", "x+1"), r"\\boxed{1+x}", False)])
    hangs = (Problem("p", "", "y=2x+3"), r"\\boxed{x^{5003}+x+1=0}", False)
    threading.Thread(target=grader.grade, args=([hangs],), daemon=True).start()
    time.sleep(0.5)
    print("hanging", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_survives_the_trainer(tmp_path: Path) -> None:
    """SIGKILL to the trainer while a worker hangs: within seconds fork server, workers and resource tracker are gone."""
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == b"hanging\n"
        assert len(_session(p.pid)) == 5  # the trainer, resource tracker, fork server, two workers
        p.kill()
    deadline = time.monotonic() + 10
    while _session(p.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _session(p.pid) == []


def _session(leader: int) -> list[int]:
    """The processes, zombies apart, of the session that `leader` started."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it ended in this moment
            continue
        if int(session) == leader and state != "Z":
            alive.append(int(stat.parent.name))
    return alive


@pytest.mark.parametrize("setting", [{"workers": 0}, {"deadline_s": 0}, {"memory_mb": -1}, {"extract_order": ["box"]}])
def test_bad_settings(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="grading: "):
        Grader(**setting)


def test_the_version_names_the_library() -> None:
    """Two evaluations whose versions agree had the same idea of equality."""
    assert re.fullmatch(r"[0-9]+\+math-verify-[0-9.]+", GRADER_VERSION)


def test_real_solutions_are_correct(data_dir: Path) -> None:
    """The reference solutions of GSM8K's 1319 and MATH500's 500 test problems, graded like completions: all correct."""
    rows = [json.loads(line) for line in (data_dir / "gsm8k_test.jsonl").read_text().splitlines()]
    gsm8k = [(problem(row["answer"].rpartition("####")[2]), row["answer"], False) for row in rows]
    rows = [json.loads(line) for line in (data_dir / "math500_test.jsonl").read_text().splitlines()]
    math500 = [(problem(row["answer"]), row["solution"], False) for row in rows]
    assert (len(gsm8k), len(math500)) == (1319, 500)
    with Grader() as grader:
        verdicts = grader.grade(gsm8k + math500)
    assert [verdict for verdict in verdicts if verdict != CORRECT] == []
