"""Alarms of a run: what was seen, against what, and since when. One JSON object a line in its folder's `alarms.jsonl`.

Raised by `trainers.monitor`, heeded and written by `rlcore.run.folder`, shown by `rlcore.report.monitor`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rlcore.errors import UserError

FILE = "alarms.jsonl"
_SHOWN = 100  # characters of a sample that are told at once
Action = Literal["warn", "stop", "rollback"]


@dataclass(frozen=True)
class Sample:
    """A completion that shows the pattern well."""

    problem: str
    sample: int
    text: str
    steps: int
    tokens: int
    repetition: float
    pay: float | None  # by the components that are watched; None where they pay nothing that is known
    accuracy: float | None


@dataclass(frozen=True)
class Alarm:
    pattern: str
    step: int  # at which it is raised
    since: int  # the step whose completions showed the pattern first
    numbers: Mapping[str, tuple[float, float]]  # by name: the baseline's, and this step's
    samples: Sequence[Sample]
    action: Action

    @property
    def line(self) -> str:
        told = ", ".join(f"{name} {before:.3g} → {now:.3g}" for name, (before, now) in self.numbers.items())
        worst = next((f"; such as {s.problem}, sample {s.sample}: {_on_a_line(s.text)!r}" for s in self.samples), "")
        return f"{self.pattern} since step {self.since}: {told}{worst}"


def _on_a_line(text: str) -> str:
    half = _SHOWN // 2
    return text if len(text) <= _SHOWN else f"{text[:half]} … {text[-half:]}"


def append(folder: Path, alarms: Sequence[Alarm]) -> None:
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(alarm)) + "\n" for alarm in alarms)


def read(folder: Path) -> list[Alarm]:
    """Raises UserError for a line that is no alarm."""
    path = folder / FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        rows = [json.loads(line) for line in lines]
        return [Alarm(**{**row, "samples": [Sample(**sample) for sample in row["samples"]]}) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a file of alarms: {error}") from error


def keep_until(folder: Path, step: int) -> None:
    """Forget the alarms of later steps, which a resumed run takes again."""
    if kept := [alarm for alarm in read(folder) if alarm.step <= step]:
        (folder / FILE).unlink()
        append(folder, kept)
    else:
        (folder / FILE).unlink(missing_ok=True)
