"""How fast `rlcore.grading` is: on GSM8K answers as models write them, on answers that need algebra, and after a hang.

    python -m benchmarks.grading [--json FILE] [--data-dir DIR]

Two worker processes. What is timed is `Grader.grade` on whole batches, after one answer has started the processes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rlcore.cli.output import write_json
from rlcore.grading.equal import same_spelling
from rlcore.grading.pool import GRADER_VERSION, Grader
from rlcore.grading.workers import Workers
from rlcore.types import Problem

Completion = tuple[Problem, str, bool]
WORKERS = 2
DEADLINE_S = 1.0
HANGS = Problem("line", "", "y=2x+3"), "x^{5003}+x+1=0"  # sympy looks for the roots for minutes
ENDINGS = (
    r"So the answer is \boxed{@}.",
    r"Therefore: $\boxed{@}$ dollars in total.",
    "#### @",
    "The answer is $@.",
    "**Answer:** @",
    "That makes @ of them, which is what was asked.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the grader.")
    parser.add_argument("--json", default="", metavar="FILE", help="where the result goes, as one flat object; - is the screen")
    parser.add_argument(
        "--data-dir", type=Path, default=os.environ.get("RLCORE_DATA_DIR"), help="has gsm8k_test, math500_test.jsonl"
    )
    options = parser.parse_args()
    if not options.data_dir or not (options.data_dir / "gsm8k_test.jsonl").exists():
        parser.error(f"no gsm8k_test.jsonl in {options.data_dir}; give its folder with --data-dir or RLCORE_DATA_DIR")
    result = {"grader": GRADER_VERSION, "workers": WORKERS, "cores": os.cpu_count()}
    with Grader(workers=WORKERS) as grader:
        started = time.perf_counter()
        grader.grade([(Problem("warm", "", "x+1"), r"\boxed{1+x}", False)])
        result["start_s"] = round(time.perf_counter() - started, 2)
        for name, batch in {"gsm8k": gsm8k(options.data_dir), "algebra": algebra(options.data_dir)}.items():
            result |= throughput(grader, name, batch)
    result |= replacement()
    write_json(result, options.json)
    for line in (
        "grader {grader}, {workers} workers on {cores} cores",
        "GSM8K answers  {gsm8k_per_s:>7,} / s   {gsm8k_answers:,} of them, {gsm8k_correct:.0%} right",
        "with algebra   {algebra_per_s:>7,} / s   {algebra_answers:,} of them, {algebra_correct:.0%} right",
        "first answer   {start_s:>7} s     imports and warming up, once",
        "after a hang   {replacement_ms:>7} ms    to the next answer; the verdict comes {late_ms} ms after the deadline",
    ):
        print(line.format(**result), file=sys.stderr)


def gsm8k(data_dir: Path) -> list[Completion]:
    """Every test problem with each ending; every other one wrong."""
    completions: list[Completion] = []
    for n, row in enumerate(_rows(data_dir / "gsm8k_test.jsonl")):
        reasoning, _, gold = row["answer"].rpartition("####")
        value = int(gold.replace(",", ""))
        for m, ending in enumerate(ENDINGS):
            given = value if (n + m) % 2 else value + 1 + m
            written = ending.replace("@", f"{given:,}" if m % 2 else str(given))
            completions.append((Problem(f"gsm8k-{n}", row["question"], gold.strip()), reasoning + written, False))
    return completions


def algebra(data_dir: Path) -> list[Completion]:
    """Every reference answer of MATH500 that is no number: with others' answers, and written so that spelling cannot tell."""
    golds = list(dict.fromkeys(row["answer"] for row in _rows(data_dir / "math500_test.jsonl")))
    draw = random.Random(0)
    completions: list[Completion] = []
    for n, gold in enumerate(golds):
        answers = [f"{gold}+x-x", f"0+{gold}", rf"1 \cdot {gold}", *draw.sample(golds, 5)]
        problem = Problem(f"math500-{n}", "", gold)
        completions += [(problem, rf"\boxed{{{answer}}}", False) for answer in answers if same_spelling(gold, answer) is None]
    return completions


def throughput(grader: Grader, name: str, batch: Sequence[Completion]) -> dict[str, float]:
    started = time.perf_counter()
    verdicts = grader.grade(batch)
    seconds = time.perf_counter() - started
    correct = sum(verdict.kind == "correct" for verdict in verdicts) / len(batch)
    return {f"{name}_answers": len(batch), f"{name}_per_s": round(len(batch) / seconds), f"{name}_correct": round(correct, 3)}


def replacement(times: int = 5) -> dict[str, float]:
    """Medians. One worker, so that the next answer can only come from the one that replaces it."""
    late, replaced = [], []
    with closing(Workers(1, DEADLINE_S, memory_mb=2048)) as pool:
        easy = "1+x", Problem("easy", "", "x+1")
        pool.run([easy])
        for _ in range(times):
            started = time.perf_counter()
            pool.run([(HANGS[1], HANGS[0])])
            late.append(time.perf_counter() - started - DEADLINE_S)
            started = time.perf_counter()
            pool.run([easy])
            replaced.append(time.perf_counter() - started)
    return {"late_ms": round(1000 * statistics.median(late)), "replacement_ms": round(1000 * statistics.median(replaced))}


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
