"""Chooses the completions that the report shows, from the ledger that `rlcore.run` wrote beside the metrics.

A run samples more than a page can hold. Shown are whole groups of the first step, the last, and steps evenly between,
and those with the highest and the lowest combined reward of the entire run.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rlcore.errors import UserError
from rlcore.report.read import Run

STEPS = 10  # steps whose completions are shown
SHOWN = 240  # completions shown from them all together, give or take a group
EXTREMES = 10  # of the whole run, at either end of the combined reward
LONGEST = 20_000  # characters of one text; the middle of a longer one is left out

Key = tuple[str, int]  # problem id and sample: one completion of a step
End = Literal["best", "worst"]
IDENTITY = ["problem_id", "sample"]
SCORE = ["component", "verifiable", "value", "weighted", "judged", "reason"]
TEXTS = ["step", "prompt", "completion", "answer", "length", "finish_reason"]


@dataclass(frozen=True)
class Score:
    component: str
    verifiable: bool  # its raw value is accuracy
    value: float | None  # raw; None: the component could not judge this completion
    weighted: float | None
    judged: str  # what of the completion the value is about, such as the answer extracted from it
    reason: str


@dataclass
class Sample:
    """One completion, under the names by which `browser.js` reads it."""

    step: int
    problem: str
    sample: int
    prompt: str
    completion: str
    answer: str  # the right one
    length: int  # tokens
    finish: str
    extreme: End | None
    verdict: str = "unjudged"  # correct, wrong, invalid; unjudged where no component is verifiable
    reward: float | None = None  # combined: the sum of the weighted values; None when invalid
    scores: list[Score] = field(default_factory=list)


@dataclass(frozen=True)
class Samples:
    samples: Sequence[Sample]
    completions: int  # of the whole run
    steps: int


def collect(run: Run) -> Samples | None:
    """The samples to show; None where the run kept no ledger. Reads texts only from the files that it shows."""
    files = sorted((run.folder / "ledger").glob("step-*.parquet"))
    if not files:
        return None
    extremes, completions = _extremes(files)
    steps = _spread(files)
    samples = []
    for file in files:
        wanted = {key: end for where, key, end in extremes if where == file}
        room = SHOWN // len(steps) if file in steps else 0
        if room or wanted:
            samples += _samples(file, room, wanted)
    return Samples(samples, completions, len(files))


def _spread(files: Sequence[Path]) -> list[Path]:
    """The first file, the last, and others evenly between."""
    if len(files) <= STEPS:
        return list(files)
    return [files[round(i * (len(files) - 1) / (STEPS - 1))] for i in range(STEPS)]


def _extremes(files: Sequence[Path]) -> tuple[list[tuple[Path, Key, End]], int]:
    """Where the best and the worst completions of the run are, and how many completions it has."""
    best: list[tuple[float, Path, Key]] = []
    worst: list[tuple[float, Path, Key]] = []
    completions = 0
    for file in files:
        rewards = _rewards(file)
        completions += len(rewards)
        found = [(reward, file, key) for key, reward in rewards.items() if not math.isnan(reward)]
        best = heapq.nlargest(EXTREMES, best + found)
        worst = heapq.nsmallest(EXTREMES, worst + found)
    return [(file, key, "worst") for _, file, key in worst] + [(file, key, "best") for _, file, key in best], completions


def _rewards(file: Path) -> dict[Key, float]:
    """The combined reward of each completion of a step; NaN when invalid."""
    table = _read(file, [*IDENTITY, "value", "weighted"])
    rewards: dict[Key, float] = {}
    for problem, sample, value, weighted in zip(*(column.to_pylist() for column in table.columns), strict=True):
        usable = _number(value) is not None and weighted is not None
        rewards[problem, sample] = rewards.get((problem, sample), 0.0) + (weighted if usable else math.nan)
    return rewards


def _read(file: Path, columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(file) as parquet:
            return parquet.read(columns=columns).select(columns)  # `read` passes over a missing column in silence
    except (pa.ArrowException, KeyError, OSError) as error:
        raise UserError(f"{file}: not readable as a ledger: {str(error).splitlines()[0]}") from error


def _number(value: float | None) -> float | None:
    """JSON has neither NaN nor infinity; a value that is not finite is no value."""
    return value if value is not None and math.isfinite(value) else None


def _samples(file: Path, room: int, wanted: dict[Key, End]) -> list[Sample]:
    """The first groups of a step, and the completions wanted besides, each put together from its components' rows."""
    rows = _read(file, IDENTITY + SCORE + TEXTS).to_pylist()
    keys = dict.fromkeys((row["problem_id"], row["sample"]) for row in rows)
    shown = {*_groups(keys, room), *wanted}
    chosen: dict[Key, Sample] = {}
    for row in rows:
        key = row["problem_id"], row["sample"]
        if key in shown:
            chosen.setdefault(key, _sample(row, wanted.get(key))).scores.append(_score(row))
    for sample in chosen.values():
        _judge(sample)
    return list(chosen.values())


def _groups(keys: Iterable[Key], room: int) -> list[Key]:
    """The completions of the first problems: as many whole groups as there is room for, and at least one."""
    shown: list[Key] = []
    for _, group in groupby(keys, key=lambda key: key[0]):
        members = list(group)
        if not room or (shown and len(shown) + len(members) > room):
            break
        shown += members
    return shown


def _sample(row: dict[str, Any], extreme: End | None) -> Sample:
    return Sample(
        step=row["step"],
        problem=row["problem_id"],
        sample=row["sample"],
        prompt=_shortened(row["prompt"]),
        completion=_shortened(row["completion"]),
        answer=_shortened(row["answer"]),
        length=row["length"],
        finish=row["finish_reason"],
        extreme=extreme,
    )


def _score(row: dict[str, Any]) -> Score:
    return Score(
        component=row["component"],
        verifiable=bool(row["verifiable"]),
        value=_number(row["value"]),
        weighted=_number(row["weighted"]),
        judged=_shortened(row["judged"]),
        reason=row["reason"] or "",
    )


def _shortened(text: str | None) -> str:
    text = text or ""
    left_out = len(text) - LONGEST
    if left_out <= 0:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n\n[… {left_out:,} characters left out of this page …]\n\n{text[-half:]}"


def _judge(sample: Sample) -> None:
    if any(score.value is None for score in sample.scores):
        sample.verdict = "invalid"
        return
    sample.reward = sum(score.weighted or 0.0 for score in sample.scores)
    for score in sample.scores:
        if score.verifiable:
            sample.verdict = "correct" if score.value == 1 else "wrong"
