"""The alarms that the monitor raised, with the completions that show them best, for `rlcore.report.page`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rlcore.report.headline import number
from rlcore.run.alarms import Alarm, Sample


def alarms_of(raised: Sequence[Alarm]) -> str:
    """HTML."""
    if not raised:
        return '<p class="note">No alarm was raised.</p>'
    return '<p class="note">A dashed line is an alarm.</p>' + "".join(map(_alarm, raised))


def _alarm(alarm: Alarm) -> str:
    seen = f"raised at step {alarm.step}, seen since step {alarm.since}"
    rows = "".join(
        f"<tr><th scope=row>{escape(name.replace('_', ' '))}<td>{number(before)}<td>{number(now)}"
        for name, (before, now) in alarm.numbers.items()
    )
    table = f"<table><thead><tr><th><th scope=col>baseline<th scope=col>step {alarm.step}<tbody>{rows}</table>"
    samples = "".join(map(_sample, alarm.samples))
    shown = f"<details><summary>the completions of step {alarm.step} that show it best</summary>{samples}</details>"
    return f"<h3>{escape(alarm.pattern.replace('_', ' '))}</h3><p>{seen}; {_DONE[alarm.action]}.</p>{table}{shown}"


_DONE = {"warn": "the run went on", "stop": "the run was stopped", "rollback": "the run was stopped, to be rolled back"}


def _sample(sample: Sample) -> str:
    facts = [f"{sample.steps} steps", f"{sample.tokens} tokens", f"repetition {number(sample.repetition)}"]
    facts += [] if sample.pay is None else [f"paid {number(sample.pay)}"]
    facts += [] if sample.accuracy is None else [f"accuracy {number(sample.accuracy)}"]
    return f"<h4>{escape(sample.problem)}, sample {sample.sample}: {', '.join(facts)}</h4><pre>{escape(sample.text)}</pre>"
